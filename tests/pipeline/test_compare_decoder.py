"""`compare.decoder`: any autoencoder with the same phase `decoder`, as rows of their own, on cells of their own."""

import asyncio
import json
import shutil

import pytest
from cells_here import CellsHere
from test_old_run import OLD

from pipeline.compare import decoders
from pipeline.compare.cells import autoencoder_cell, decoder_cell, generator_cell
from pipeline.compare.select import possible_cells, remove_cells
from pipeline.compare.stage import _check, _goals, _results, _write
from pipeline.config.errors import ConfigError
from pipeline.config.load import load_config, override
from pipeline.judge.figures import make_reference
from pipeline.store.run import open_run

SMALL = [
    "compare.decoder=both",
    "compare.seeds=1",
    "compare.selection_images=100",
    "decoder.epochs=2",
    "decoder.width=4",
    "decoder.sampler_draws=0.5",
    "train.epochs=1",
    "train.checkpoint_epochs=1",
    "train.batch_size=32",
    "train.device=cpu",
    "sampler.steps=4",
    "sampler.particles=16",
    "evaluate.extractor=random",
    "evaluate.num_images=100",
    "evaluate.draws=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The data of the run of 0.1, to compare on."""
    folder = tmp_path_factory.mktemp("compare")
    shutil.copytree(OLD, folder / "run-0.1")
    config = load_config(OLD / "config.yaml", [f"storage={folder}", "name=run-0.1", *SMALL])
    few = {"compare.autoencoders": {"vae": [], "wae_mmd": [1]}, "compare.generators": {"gmm": [], "drift": [1.0]}}
    return open_run(override(config, few))


@pytest.fixture(scope="module")
def compared(run):
    reference = make_reference(run, "validation", "test")
    schedule = CellsHere(run, reference)
    found = asyncio.run(schedule.all())
    assert schedule.failed == []
    assert len(schedule.records) == schedule.total == 2 * 2 * 3
    return schedule, _results(run, reference, found)


def test_all_autoencoders_without_and_with_it(run, compared):
    _, results = compared
    names = {one["name"]: one["label"] for one in results["autoencoders"]}
    assert names == {
        "vae": "VAE",
        "wae_mmd": "WAE-MMD",
        "vae+decoder": "VAE + decoder",
        "wae_mmd+decoder": "WAE-MMD + decoder",
    }
    fd = {(row["autoencoder"], row["generator"]): row["figures"]["fd"] for row in results["rows"]}
    assert len(fd) == 8
    for name in ("vae", "wae_mmd"):
        plain, sharp = (
            next(one for one in results["autoencoders"] if one["name"] == name + end) for end in ("", "+decoder")
        )
        assert plain["figures"]["mse"] != sharp["figures"]["mse"]
        assert sharp["figures"]["seconds"] > plain["figures"]["seconds"]  # of both trainings
        for generator in ("gmm", "drift"):
            assert fd[name, generator] != fd[f"{name}+decoder", generator]
            # Latents have not moved: all that is measured on them is the same.
            mmd2 = [
                row["figures"]["mmd2"]
                for row in results["rows"]
                if row["autoencoder"].startswith(name) and row["generator"] == generator
            ]
            assert mmd2[0] == mmd2[1]
    assert results["decoder"] == {"which": "both", "note": "decoder trained adversarially, weight 4, 2 epochs"}
    files, _ = _write(run.folder, results)
    page = " ".join(run.folder.read("compare/index.html").decode().split())
    assert "the autoencoder is the same with its decoder trained adversarially, weight 4, 2 epochs" in page
    assert "| VAE + decoder |" in run.folder.read("compare/results.md").decode()
    assert "compare/results.json" in files


def test_its_cells_are_kept_and_a_killed_one_goes_on(run, compared, monkeypatch):
    schedule, _ = compared
    cell = decoder_cell(run.config, schedule.autoencoder("vae", None, 0))
    done = json.loads(run.folder.read(cell.record))
    run.folder.remove(cell.folder)

    class Killed(Exception):
        pass

    epochs = decoders.DecoderPhase.epochs

    def some(phase):
        for epoch in epochs(phase):
            yield epoch
            raise Killed

    monkeypatch.setattr(decoders.DecoderPhase, "epochs", some)
    with pytest.raises(Killed):
        decoders.train_decoder(run, cell, schedule.given[1])
    monkeypatch.undo()
    assert run.folder.below(f"compare/checkpoints/{cell.key}")
    again = decoders.train_decoder(run, cell, schedule.given[1])
    assert again["files"] == done["files"]  # the same weights to the bit
    assert again["history"][0]["time"] != done["history"][0]["time"]
    assert not run.folder.below(f"compare/checkpoints/{cell.key}")
    fresh = CellsHere(run, schedule.given[1])
    asyncio.run(fresh.all())
    assert fresh.kept == len(fresh.records) == 12


def keys(*overrides):
    config = load_config(overrides=["decoder.epochs=2", *overrides])
    vae = autoencoder_cell(config, "data", "features", "vae", None, 0)
    sharp = decoder_cell(config, vae)
    return (
        vae.key,
        sharp.key,
        generator_cell(config, vae, "gmm", None).key,
        generator_cell(config, sharp, "gmm", None).key,
    )


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("decoder.adversarial=1", [False, True, False, True]),
        ("train.epochs=7", [True, True, True, True]),
        ("sampler.base_components=7", [False, False, False, False]),
        ("compare.decoder=both", [False, False, False, False]),
    ],
)
def test_a_cell_depends_on_what_it_uses(override, changed):
    assert [a != b for a, b in zip(keys(), keys(override), strict=True)] == changed
    drawn = "decoder.sampler_draws=0.5"
    assert (keys(drawn)[1] != keys(drawn, override)[1]) == (changed[1] or "base" in override)


def test_what_stands_on_a_cell_goes_with_it(run):
    cells = [*possible_cells(run.config, "data", "features")]
    names = [cell.name for cell in cells]
    assert names[:6] == [
        "vae/seed0",
        "vae/seed0/gmm",
        "vae/seed0/drift@1",
        "vae+decoder/seed0",
        "vae+decoder/seed0/gmm",
        "vae+decoder/seed0/drift@1",
    ]
    folder = run.folder / "elsewhere"

    def left(*patterns):
        for cell in cells:
            folder.write_json(cell.record, {"cell": cell.job, "figures": {"fd": 1.0, "seconds": 900.0}})
        remove_cells(folder, cells, patterns)
        kept = {file.split("/")[2] for file in folder.files("compare/cells/*/record.json")}
        return [cell.name for cell in cells if cell.key in kept]

    assert left("vae/seed0") == left("vae") == [name for name in names if not name.startswith("vae")]
    assert left("*+decoder/*") == [name for name in names if "+" not in name]


def test_it_needs_epochs():
    with pytest.raises(ConfigError, match=r"decoder\.epochs: compare\.decoder=all needs at least 1"):
        _check(load_config(overrides=["compare.decoder=all"]))


def test_claims_stay_within_a_group():
    def row(autoencoder, generator, fd):
        figures = {"fd": fd, "coverage": 0.5, "mmd2": 1e-4, "latents_per_s": 1.0}
        values = {"fd": [fd] * 3, "coverage": [0.5] * 3}
        spread = {"fd": 0.1, "coverage": 0.0}
        about = {"autoencoder": autoencoder, "generator": generator, "label": generator, "bound": False}
        return about | {"figures": figures, "spread": spread, "values": values}

    plain = [row("ldc_svgd", "drift", 10.0), row("vae", "gmm", 12.0)]
    sharp = [row("ldc_svgd+decoder", "drift", 3.0), row("vae+decoder", "gmm", 2.0)]
    claim = "LDC-VAE has a lower FD than every pair of another autoencoder and generator"
    found = {goal["claim"]: goal["met"] for goal in _goals([*plain, *sharp])}
    assert found == {claim: True, f"after phase decoder, {claim}": False}
