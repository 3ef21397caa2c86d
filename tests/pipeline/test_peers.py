"""The cross-check against pythae, as far as it goes without pythae: export, file exchange, table."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import prepare
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import load_config
from pipeline.store.data.shards import load_split
from pipeline.store.run import open_run

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"
MODULES = ("exchange", "export", "judge", "table")
OVERRIDES = ["name=tiny", "evaluate.extractor=random", "evaluate.num_images=60", "evaluate.neighbours=3"]
DATA = {"shape": [1, 8, 8], "digest": "d"}
FIGURES = ("fd", "kid", "precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def peers():
    """The scripts, which import each other by name."""
    sys.path.insert(0, str(FOLDER))
    yield type("Peers", (), {name: importlib.import_module(name) for name in MODULES})
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    run = open_run(load_config(None, [*OVERRIDES, f"storage={tmp_path_factory.mktemp('runs')}"]))
    prepare.run(run)
    return run


def options(run):
    return [*OVERRIDES, f"storage={run.config.storage}"]


@pytest.fixture(scope="module")
def exported(peers, prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    peers.export.main([str(folder), "--seeds", "0,1", "--set", "vamp=7", *options(prepared)])
    return folder


def results(**changed):
    """What pipeline.compare would have written of two autoencoders."""
    row = {"autoencoder": "vae", "generator": "prior", "values": {figure: [1.0, 3.0] for figure in FIGURES}}
    vamp = {"autoencoder": "vampprior", "generator": "prior", "values": {figure: [5.0, 6.0] for figure in FIGURES}}
    autoencoders = [
        {"name": "vae", "setting": None, "values": {"mse": [0.1, 0.2], "fd": [1.0, 2.0], "peak_mb": [None, 1.0]}},
        {"name": "vampprior", "setting": 50.0, "values": {"mse": [0.1, 0.2], "fd": [1.0, 2.0]}},
    ]
    whole = {"autoencoders": autoencoders, "rows": [row, vamp], "seeds": [3, 4], "budget": {"epochs": 5}}
    return whole | {"split": "test", "num_images": 60, "neighbours": 3, "extractor": {"sha256": "x"}} | changed


def found(peers, values=(2.0, 4.0)):
    table = {f"{name}/reconstruction": {"mse": values, "fd": values} for name in peers.exchange.LABELS}
    for name, samplers in peers.exchange.SAMPLERS.items():
        table |= {f"{name}/{sampler}": dict.fromkeys(FIGURES, values) for sampler in samplers}
    return table


def made_up(peers, folder, spec, held_out):
    """What train_pythae.py would have written, from reconstructions without error and noise as samples."""
    rng = np.random.default_rng(0)
    for seed in spec["seeds"]:
        for name, samplers in peers.exchange.SAMPLERS.items():
            for sampler in samplers:
                images = rng.random((spec["num_images"], *spec["shape"]), dtype=np.float32)
                peers.exchange.write_images(
                    peers.exchange.cell(folder, "samples", name, sampler, seed), images=images
                )
            path = peers.exchange.cell(folder, "reconstructions", name, seed)
            peers.exchange.write_images(path, images=held_out)
            path = peers.exchange.cell(folder, "trained", name, seed)
            peers.exchange.write_json(path, {"spec": peers.exchange.digest(spec)})


def test_export_writes_every_split_as_it_is_stored(peers, prepared, exported):
    for split in ("train", "validation", "test"):
        images = peers.exchange.read_images(exported / "images.npz", split)
        assert images.dtype == np.uint8
        assert (images == load_split(prepared, split).pixels.numpy()).all()
    spec = peers.exchange.read_json(exported / "spec.json")
    assert (spec["network"], spec["shape"], spec["latent_dim"]) == ("mlp", [1, 8, 8], 8)
    assert (spec["seeds"], spec["settings"]["vamp"], spec["keep"]) == ([0, 1], 7, "best")


def test_settings_come_from_the_run_s_comparison(peers):
    spec = peers.export.make_spec(load_config(), DATA, results())
    assert (spec["settings"]["vamp"], spec["settings"]["wae_mmd"], spec["seeds"]) == (50, 10.0, [3, 4])
    assert (spec["epochs"], spec["batch_size"]) == (5, load_config().train.batch_size)
    spec = peers.export.make_spec(load_config(), DATA, results(), seeds=[9], chosen={"vamp": 8.0, "gmm": 4.0})
    assert (spec["settings"]["vamp"], spec["seeds"], spec["components"]) == (8, [9], 4)


@pytest.mark.parametrize("override", ["model.likelihood=bernoulli", "train.weight_decay=0.1"])
def test_what_the_peers_cannot_do_is_refused(peers, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        peers.export.make_spec(load_config(None, [override]), DATA)


@pytest.mark.parametrize("item", ["vamps=3", "vamp=many"])
def test_a_wrong_setting_is_named(peers, prepared, tmp_path, item):
    with pytest.raises(SystemExit, match=item):
        peers.export.main([str(tmp_path), "--set", item, *options(prepared)])


def test_images_are_rounded_clipped_and_checked(peers, tmp_path):
    images = np.array([-1.0, 0.501 / 255, 0.499 / 255, 2.0], np.float32).reshape(1, 1, 2, 2)
    peers.exchange.write_images(tmp_path / "a.npz", images=images)
    assert peers.exchange.read_images(tmp_path / "a.npz").flatten().tolist() == [0, 1, 0, 255]
    with pytest.raises(ValueError, match="not finite"):
        peers.exchange.write_images(tmp_path / "b.npz", images=images * np.nan)
    with pytest.raises(ValueError, match="shape"):
        peers.exchange.write_images(tmp_path / "b.npz", images=images[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_the_table_puts_both_sides_together(peers):
    spec = peers.export.make_spec(load_config(), DATA, results())
    table = {(row["model"], row["sampler"]): row for row in peers.table.rows(found(peers), spec, results())}
    fd = table["vae", "normal"]["figures"]["fd"]
    assert (fd["theirs"]["mean"], fd["ours"]["mean"]) == (3.0, 2.0)
    assert fd["difference"] == pytest.approx(1.0 / 2**0.5)
    # VampPrior's prior is its own mixture, beside which pythae's sampler and the prior it was trained with stand.
    for sampler in ("vamp", "vamp_prior"):
        assert table["vamp", sampler]["figures"]["fd"]["ours"]["mean"] == 5.5
    assert table["vamp", "vamp"]["settings"] == {"theirs": 50, "ours": 50.0}
    assert table["vae", "reconstruction"]["figures"]["mse"]["ours"]["values"] == [0.1, 0.2]
    for missing in (("vae", "gmm"), ("wae_mmd", "normal")):
        assert table[missing]["figures"]["fd"]["ours"] is None
        assert table[missing]["figures"]["fd"]["difference"] is None


@pytest.mark.parametrize(("changed", "note"), [(None, "does not exist"), ({"neighbours": 4}, "neighbours")])
def test_judge_without_comparable_results_leaves_ours_empty(peers, prepared, exported, capsys, changed, note):
    spec = peers.exchange.read_json(exported / "spec.json")
    made_up(peers, exported, spec, load_split(prepared, "test").pixels.numpy())
    if changed is not None:
        prepared.folder.write_json("compare/results.json", results(**changed))
    peers.judge.main([str(exported), *options(prepared)])
    assert note in capsys.readouterr().out
    content = peers.exchange.read_json(exported / "peers.json")
    assert note in content["note"]
    for row in content["rows"]:
        fd = row["figures"]["fd"]
        assert fd["ours"] is None
        assert fd["theirs"]["mean"] == pytest.approx(0.0, abs=1e-4) or row["sampler"] != "reconstruction"
        assert fd["theirs"]["mean"] > 0.01 or row["sampler"] == "reconstruction"
    text = (exported / "peers.md").read_text()
    assert text.count("| VAE, N(0, I) |") == len(FIGURES)
    prepared.folder.remove("compare")


def test_judge_reads_the_run_s_own_results(peers, prepared, exported):
    spec = peers.exchange.read_json(exported / "spec.json")
    made_up(peers, exported, spec, load_split(prepared, "test").pixels.numpy())
    sha = peers.judge.judge(exported, prepared)["extractor"]["sha256"]
    prepared.folder.write_json("compare/results.json", results(extractor={"sha256": sha}))
    content = peers.judge.judge(exported, prepared)
    assert content["note"] is None
    assert content["rows"][0]["figures"]["fd"]["ours"]["values"] == [1.0, 3.0]
    prepared.folder.remove("compare")


def test_cells_of_another_spec_are_refused(peers, prepared, exported):
    spec = peers.exchange.read_json(exported / "spec.json")
    made_up(peers, exported, spec, load_split(prepared, "test").pixels.numpy())
    path = peers.exchange.cell(exported, "trained", "vamp", 1)
    peers.exchange.write_json(path, {"spec": "another"})
    with pytest.raises(PipelineError, match=r"vamp-1\.json"):
        peers.judge.judge(exported, prepared)
