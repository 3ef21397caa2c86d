"""Settings of the phases: every bound holds in plain Python as it does in the pipeline's configuration."""

import math
from dataclasses import FrozenInstanceError, fields

import pytest
from pydantic import ValidationError

from ldcvae.training.settings import AutoencoderSettings, SamplerSettings, mistakes
from pipeline.config.load import describe_keys
from pipeline.config.sections import SamplerConfig, TrainConfig

BELOW_ONE = math.nextafter(1.0, 0.0)
NOT_FINITE = [math.inf, -math.inf, math.nan]
NO_NUMBER = [None, "many", [1], {}]
POSITIVE = ([1e-12, 0.5, 1, 1e9], [0, 0.0, -1e-12, -1, *NOT_FINITE, *NO_NUMBER])
FRACTION = ([0, 0.0, 0.5, 1, 1.0], [-1e-12, 1.0 + 1e-12, 2, *NOT_FINITE, *NO_NUMBER])
DECAY = ([0, 0.0, 0.5, BELOW_ONE], [-1e-12, 1, 1.0, *NOT_FINITE, *NO_NUMBER])
COUNT = ([1, 2, 10**6], [0, -1, 1.5, *NOT_FINITE, *NO_NUMBER])
AUTO = ([True, False, "auto"], [None, "Auto", "", 2, 0.5, []])
SWITCH = ([True, False], [None, "auto", "", 2, 0.5, []])


def one_of(*names):
    return list(names), ["", names[0].upper(), f"{names[0]}s", "automatic", None, 1, True, [names[0]]]


# Field -> values that are allowed, values that are not.
AUTOENCODER = {
    "objective": one_of("elbo", "svgd"),
    "particles": ([2, 4, 63, 64], [0, 1, -1, 65, 4.5, *NOT_FINITE, *NO_NUMBER]),  # 1 is for elbo, see below
    "inverse_temperature": POSITIVE,
    "consistency": FRACTION,
    "consistency_floor": POSITIVE,
    "epochs": COUNT,
    "batch_size": COUNT,
    "learning_rate": POSITIVE,
    "weight_decay": ([0, 0.0, 0.5, 1e9], [-1e-12, -1, *NOT_FINITE, *NO_NUMBER]),
    "ema": DECAY,
    "bf16": AUTO,
    "channels_last": AUTO,
    "fused": AUTO,
    "compile": AUTO,
}
SAMPLER = {
    "direction": one_of("auto", "stein", "score_difference", "drift"),
    "bandwidths": (
        [(0.1,), [0.1], (0.13, 0.23, 0.42), (1,), [0.5] * 16],
        [(), [], [0.5] * 17, (0.0,), (0.1, -0.2), (0.1, math.inf), (math.nan,), ("a",), (None,), 0.1, None, "0.1"],
    ),
    "bandwidth_unit": one_of("neighbour", "absolute"),
    "kernel": one_of("rbf", "imq", "laplace"),
    "self_term": SWITCH,
    "smooth": SWITCH,
    "floor": POSITIVE,
    "particles": ([4, 5, 65535, 65536], [3, 0, -1, 65537, 4.5, *NOT_FINITE, *NO_NUMBER]),
    "posterior_noise": FRACTION,
    "base": one_of("normal", "gmm"),
    "base_components": COUNT,
    "base_centres": COUNT,
    "base_spread": ([1e-9, 0.5, 1, 1.0], [0, 0.0, -0.1, 1.001, 2, *NOT_FINITE, *NO_NUMBER]),
    "width": COUNT,
    "depth": COUNT,
    "steps": COUNT,
    "learning_rate": POSITIVE,
    "ema": DECAY,
    "checkpoint_steps": COUNT,
}
TABLES = ((AutoencoderSettings, TrainConfig, AUTOENCODER), (SamplerSettings, SamplerConfig, SAMPLER))
CASES = [
    pytest.param(settings, section, name, value, allowed, id=f"{section.__name__}.{name}={value!r}"[:60])
    for settings, section, table in TABLES
    for name, both in table.items()
    for allowed, values in zip((True, False), both, strict=True)
    for value in values
]


@pytest.mark.parametrize(("settings", "section", "table"), TABLES)
def test_every_field_is_in_the_table_with_its_default_and_its_doc(settings, section, table):
    assert list(table) == [field.name for field in fields(settings)]
    meanings = {name: meaning for name, _, _, meaning in describe_keys(section)}
    for field in fields(settings):
        assert section.model_fields[field.name].default == field.default
        assert meanings[field.name], field.name


@pytest.mark.parametrize(("settings", "section", "name", "value", "allowed"), CASES)
def test_the_plain_settings_and_the_section_judge_alike(settings, section, name, value, allowed):
    if allowed:
        assert getattr(settings(**{name: value}), name) == value
        found = getattr(section.model_validate({name: value}), name)
        assert found == (tuple(value) if name == "bandwidths" else value)
        return
    with pytest.raises(ValueError, match=rf"^{name} ") as plain:
        settings(**{name: value})
    if not str(plain.value).startswith("particles is 1, but objective 'svgd' needs at least 2"):
        assert str(plain.value).endswith(f", got {value!r}")
    with pytest.raises(ValidationError, match=name):
        section.model_validate({name: value})


@pytest.mark.parametrize("make", [AutoencoderSettings, lambda **named: TrainConfig.model_validate(named)])
def test_one_particle_is_for_the_bound_only(make):
    assert make(objective="elbo", particles=1).particles == 1
    with pytest.raises(ValueError, match="particles is 1, but objective 'svgd' needs at least 2"):
        make(particles=1)


@pytest.mark.parametrize(("name", "value"), [("epochs", "4"), ("epochs", True), ("epochs", 4.0), ("ema", "0.5")])
def test_python_gets_the_type_it_asks_for(name, value):
    """A text file may spell a number in other ways, and the section takes them; from Python they are a mistake."""
    assert getattr(TrainConfig.model_validate({name: value}), name) == type(getattr(TrainConfig(), name))(value)
    with pytest.raises(ValueError, match=f"^{name} must be a"):
        AutoencoderSettings(**{name: value})


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ValueError, match="epochs") as caught:
        AutoencoderSettings(epochs=0, ema=1.0, objective="vae", bf16=3, particles=65)
    assert str(caught.value).split("; ") == [
        "objective must be one of elbo, svgd, got 'vae'",
        "particles must be at most 64, got 65",
        "epochs must be at least 1, got 0",
        "ema must be below 1, got 1.0",
        "bf16 must be true or false or must be one of auto, got 3",
    ]
    with pytest.raises(ValueError, match="direction") as caught:
        SamplerSettings(direction="drifts", bandwidths=(0.1, 0.0), floor=math.inf, smooth="no", steps=1.5)
    assert str(caught.value).split("; ") == [
        "direction must be one of auto, stein, score_difference, drift",
        "did you mean drift?, got 'drifts'",
        "bandwidths must be above 0, got (0.1, 0.0)",
        "smooth must be true or false, got 'no'",
        "floor must be finite, got inf",
        "steps must be a whole number, got 1.5",
    ]
    with pytest.raises(ValidationError) as told:
        TrainConfig(epochs=0, ema=1.0, objective="vae", bf16=3, particles=65)
    assert {str(item["loc"][0]) for item in told.value.errors()} == {
        "objective", "particles", "epochs", "ema", "bf16",
    }  # fmt: skip


def test_what_settings_hold_cannot_be_changed_and_a_section_is_such_settings():
    with pytest.raises(FrozenInstanceError):
        AutoencoderSettings().epochs = 3
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().epochs = 3
    assert isinstance(TrainConfig(), AutoencoderSettings)
    assert isinstance(SamplerConfig(), SamplerSettings)
    assert mistakes(SamplerSettings()) == []
