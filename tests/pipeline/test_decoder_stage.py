"""Phase `decoder` in the pipeline: killed and gone on with, told on the page, searched, part of a training."""

import contextlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
import torch
from processes import TINY, here, kill_worker, wait_for
from test_faults import history, registered
from test_old_run import OLD

from ldcvae import LDCVAE, AutoencoderSettings, DecoderSettings, SamplerSettings, fit
from ldcvae.training.monitor import NonFiniteLossError
from ldcvae.training.world import World
from pipeline import evaluate, report, sample
from pipeline.config.errors import ConfigError
from pipeline.config.load import load_config, override
from pipeline.config.sections import ModelConfig
from pipeline.judge.figures import make_reference
from pipeline.store.data.shards import load_split
from pipeline.store.model import build_model, load_before
from pipeline.store.run import open_run
from pipeline.train.fit import check
from pipeline.train.worker import _explain
from pipeline.tune.space import build_space
from pipeline.tune.trial import Trial, phases_of, run_trial

ON = ["decoder.epochs=24", "decoder.sampler_draws=0.25", "decoder.width=8", "train.checkpoint_epochs=2"]
ON += ["model.network=conv", "model.width=8", "model.depth=1", "sampler.base_components=2"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory, one_ray):
    """A training whose worker was killed in phase `decoder`, and that went on."""
    folder = tmp_path_factory.mktemp("decoder")
    here("prepare", folder)

    def strike():
        wait_for(lambda: registered(folder, "decoder"), "checkpoint of the decoder")
        there = registered(folder, "decoder")[-1], history(folder)
        kill_worker(psutil.Process())
        return there

    with ThreadPoolExecutor(1) as beside:
        struck = beside.submit(strike)
        out, _ = here("train", folder, *ON)
        held, before = struck.result()
    assert "a worker failed: its process was killed or crashed" in out
    kept = [
        line
        for line in before
        if line["phase"] == "autoencoder" or (line["phase"] == "decoder" and line["step"] <= held)
    ]
    assert history(folder)[: len(kept)] == kept  # to the time of day
    assert "train: decoder" in out
    return folder


def opened(storage, *overrides):
    return open_run(load_config(None, [*TINY, f"storage={storage}", *ON, *overrides]))


@pytest.mark.slow
def test_a_killed_phase_ends_in_the_weights_of_fit(storage):
    run = opened(storage)
    trained = LDCVAE.from_pretrained(run.folder.path("model"))
    images, held_out = (load_split(run, split).pixels for split in ("train", "validation"))
    config = run.config
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build_model(config, run.shape)
        settings = SamplerSettings(steps=60, particles=64, checkpoint_steps=20, width=32, base_components=2)
        # `fit` makes the sampler net anew for a model that it is given, which draws other numbers: its own then.
        fitted = fit(
            images,
            model,
            validation=held_out,
            autoencoder=AutoencoderSettings(epochs=6),
            decoder=DecoderSettings(epochs=24, sampler_draws=0.25, width=8),
            sampler=settings,
            progress=False,
        )
    for name, weight in trained.state_dict().items():
        if name.startswith(("encoder.", "decoder.")):
            assert torch.equal(weight, fitted.state_dict()[name]), name
    with torch.random.fork_rng():  # the decoder of before, although the process was killed after it was written
        torch.manual_seed(config.seed)
        plain = fit(
            images,
            build_model(override(config, {"decoder.epochs": 0}), run.shape),
            validation=held_out,
            autoencoder=AutoencoderSettings(epochs=6),
            sampler=replace(settings, steps=1),
            progress=False,
        )
    before = load_before(run, trained)
    for name, weight in before.decoder.state_dict().items():
        assert torch.equal(weight, plain.decoder.state_dict()[name]), name
    assert all(map(torch.equal, before.sampler.parameters(), trained.sampler.parameters()))
    lines = history(storage)
    assert [line["epoch"] for line in lines if line["phase"] == "decoder"] == list(range(1, 25))
    assert [line["step"] for line in lines if line["phase"] == "sampler"] == [20, 40, 60]


@pytest.mark.slow
def test_figures_and_page_say_how_the_decoder_was_trained(storage, capsys):
    run = opened(storage)
    for stage in (sample, evaluate, report):
        stage.run(run)
    note = "decoder trained adversarially, weight 4, 24 epochs"
    assert f"all of them: {note}" in capsys.readouterr().out
    metrics = run.folder.read_json("evaluation/metrics.json")
    assert metrics["decoder"] == {"epochs": 24, "adversarial": 4.0, "note": note}
    page = run.folder.read("report/index.html").decode()
    assert f"Same decoder ({note})" in " ".join(page.split())
    assert "as decoded before phase decoder, and after it" in " ".join(page.split())
    assert (storage / "tiny/report/decoder.png").exists()
    for key in ("adversarial", "discriminator", "real-score", "fake-score", "validation-mse"):
        assert (storage / f"tiny/report/training-decoder-{key}.png").exists()
    assert run.manifest("train").info["figures"]["decoder"]["validation_mse"] > 0


@pytest.mark.slow
def test_another_phase_is_another_training(storage):
    for key, there, now in (("epochs", 24, 0), ("adversarial", 4.0, 1.0), ("sampler_draws", 0.25, 0.0)):
        with pytest.raises(ConfigError, match=f"decoder.{key}: {there} there, {now} here"):
            opened(storage, f"decoder.{key}={now}").made("train")


def test_a_run_from_before_the_phase_is_not_taken_for_one_with_it():
    keys = [f"storage={OLD.parent}", "name=run-0.1"]
    run = open_run(load_config(OLD / "config.yaml", keys))
    assert run.made("train").stage == "train"
    with pytest.raises(ConfigError, match=r"decoder\.epochs: 0 there, 8 here"):
        open_run(override(run.config, {"decoder.epochs": 8})).made("train")
    with pytest.raises(ConfigError, match=r"model\.upsample: 'transposed' there, 'nearest' here"):
        open_run(override(run.config, {"model.upsample": "nearest"})).made("train")


def test_later_keys_are_kept_only_where_they_say_something():
    assert "upsample" not in ModelConfig().kept_under()
    assert ModelConfig(upsample="nearest").kept_under()["upsample"] == "nearest"
    assert set(ModelConfig().model_dump()) - set(ModelConfig().kept_under()) == {"upsample"}
    assert "width" not in ModelConfig().kept_under({"width"})


def test_what_cannot_be_trained_is_told_before_ray_starts(tmp_path):
    config = load_config(OLD / "config.yaml", [f"storage={OLD.parent}", "name=run-0.1", "decoder.epochs=1"])
    check(open_run(config))
    missing = {"decoder.perceptual": 1.0, "decoder.perceptual_weights": str(tmp_path / "none.pt")}
    with pytest.raises(ConfigError, match=r"decoder\.perceptual_weights: .*none\.pt does not exist"):
        check(open_run(override(config, missing)))
    with pytest.raises(ConfigError, match=r"decoder\.batch_size: 7 does not divide over train\.num_workers=2"):
        load_config(None, ["decoder.epochs=1", "decoder.batch_size=7", "train.num_workers=2"])
    few = ["decoder.epochs=1", "decoder.judged=0.05", "train.num_workers=4"]
    with pytest.raises(ConfigError, match=r"judged: 0\.05 of a batch of 64 are fewer .*; must be at least 0\.07"):
        load_config(None, few)
    load_config(None, [*few, "decoder.judged=0.07"])
    with pytest.raises(ConfigError, match="'mlp' does not upsample"):
        check(open_run(override(config, {"model.network": "mlp", "model.upsample": "nearest"})))
    with pytest.raises(ConfigError, match=r"sampler\.base_components: 1,001, with 100 training images"):
        check(open_run(override(config, {"sampler.base_components": 1001})))
    check(open_run(override(config, {"sampler.base_components": 1001, "sampler.base": "normal"})))


def test_a_loss_that_is_not_finite_names_the_rate_to_lower():
    from test_phases import between  # which imports torch.distributed

    config, phase = load_config(), between()
    for term, key in (
        ("real_score", "decoder.discriminator_learning_rate"),
        ("reconstruction", "decoder.learning_rate"),
    ):
        message = _explain(NonFiniteLossError(term, 5), phase, config)
        assert message.startswith(f"decoder: {term} is not finite at step 5 (epoch 2, training images ")
        assert f"try a lower {key} (now " in message


def test_its_keys_can_be_searched():
    space = {"decoder.adversarial": {"type": "loguniform", "low": 0.1, "high": 8}}
    config = load_config(overrides=["decoder.epochs=2", f"tune.space={json.dumps(space)}"])
    assert phases_of(config, shares=False) == 3
    assert not build_space(config).only_sampler
    with pytest.raises(ConfigError, match=r"decoder\.adversarial: changes nothing while decoder\.epochs is 0"):
        build_space(override(config, {"decoder.epochs": 0}))
    epochs = override(
        config, {"decoder.epochs": 0, "tune.space": {"decoder.epochs": {"type": "int", "low": 0, "high": 4}}}
    )
    assert phases_of(epochs, shares=False) == 3
    assert (
        phases_of(override(config, {"tune.space": {"train.epochs": {"type": "int", "low": 1, "high": 4}}}), False)
        == 3
    )
    assert phases_of(load_config(overrides=["decoder.epochs=2"]), shares=True) == 1


@pytest.mark.parametrize("memory_mb", [64, 0])  # 0: images are streamed
def test_a_trial_of_a_search_has_the_phase_and_goes_on_with_it(tmp_path, memory_mb):
    shutil.copytree(OLD, tmp_path / "run-0.1")
    keys = [
        f"storage={tmp_path}",
        "name=run-0.1",
        "train.device=cpu",
        "evaluate.extractor=random",
        f"train.memory_mb={memory_mb}",
    ]
    keys += ["train.epochs=1", "train.batch_size=32", "decoder.epochs=2", "decoder.width=4", "sampler.steps=4"]
    keys += ["tune.num_images=100", "tune.reports=2", "tune.draws=1", "tune.metrics=[fd]"]
    keys += ["tune.space={decoder.adversarial: {type: uniform, low: 1, high: 8}}"]
    run = open_run(load_config(OLD / "config.yaml", keys))
    reference = make_reference(run, "validation")

    def figures(study: str, until: int) -> list[dict]:
        """The reports of a trial that is stopped as soon as it has made the report `until`."""
        reports = []

        def report(one):
            reports.append(one)
            if one["progress"] == until and not one["finished"]:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run_trial(Trial(run, study, 0, 1, reference, None), World(), report)
        return reports

    straight = figures("straight", 99)
    assert [one["progress"] for one in straight] == [2, 3, 4, 5, 6]  # one epoch, then two, then four steps
    assert straight[-1]["finished"], straight[-1]["failure"]
    assert [one["progress"] for one in figures("killed", 3)] == [2, 3]
    resumed = figures("killed", 99)
    assert [one["progress"] for one in resumed] == [4, 5, 6]
    assert resumed[-1]["figures"]["fd"] == straight[-1]["figures"]["fd"]
