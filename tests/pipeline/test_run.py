"""The whole way from images to a report, as a user runs it."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from processes import ROOT, TINY, here, run

from ldcvae import LDCVAE

FIGURES = {
    "fd", "kid", "precision", "recall", "density", "coverage", "mmd2", "sliced_wasserstein", "latents_per_s",
}  # fmt: skip
GENERATORS = ["prior", "gaussian", "gmm", "langevin", "sampler", "encoder"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    storage = tmp_path_factory.mktemp("runs")
    out, err = run("run", storage)
    return storage, out, err


@pytest.mark.slow
def test_every_stage_leaves_a_manifest_and_its_outputs(finished):
    storage, out, _ = finished
    for stage in ("data", "train", "samples", "evaluation", "report"):
        manifest = json.loads((storage / "tiny" / stage / "manifest.json").read_text())
        assert manifest["outputs"]
        for name, entry in manifest["outputs"].items():
            assert (storage / "tiny" / name).stat().st_size == entry["bytes"]
        assert f"{stage}: done" in out
    assert (storage / "tiny" / "config.yaml").exists()
    page = (storage / "tiny" / "report" / "index.html").read_text()
    assert "FD-classifier" in page


@pytest.mark.slow
def test_the_terminal_stays_quiet(finished):
    _, out, err = finished
    assert len(out.splitlines()) < 40
    assert "Traceback" not in out + err
    assert "Warning" not in err, err


@pytest.mark.slow
def test_metrics_have_the_documented_keys(finished):
    metrics = json.loads((finished[0] / "tiny" / "evaluation" / "metrics.json").read_text())
    assert list(metrics["generators"]) == GENERATORS
    for row in metrics["generators"].values():
        assert set(row) == FIGURES | {"spread", "values"}
        assert all(len(row["values"][figure]) == 2 for figure in FIGURES)
        assert row["fd"] == pytest.approx(sum(row["values"]["fd"]) / 2)
    assert metrics["extractor"]["figure"] == "FD-classifier"
    assert 0 < metrics["extractor"]["accuracy"] <= 1
    assert metrics["floor"]["fd"] < metrics["generators"]["prior"]["fd"]
    assert metrics["split"] == "test"


@pytest.mark.slow
def test_history_has_every_epoch_and_block_once(finished):
    lines = [json.loads(line) for line in (finished[0] / "tiny" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["phase"] == "autoencoder"] == list(range(1, 7))
    assert [line["step"] for line in lines if line["phase"] == "sampler"] == [20, 40, 60]


@pytest.mark.slow
def test_tensorboard_shows_the_same_history(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0] / "tiny" / "train" / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("sampler/field_rms")]
    assert steps == [20, 40, 60]


@pytest.mark.slow
def test_the_weights_load_in_three_lines(finished):
    model = LDCVAE.from_pretrained(finished[0] / "tiny" / "model")
    images = model.sample(4, generator=torch.Generator().manual_seed(0))
    assert images.shape == (4, 1, 8, 8)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


@pytest.mark.slow
def test_running_again_does_nothing(finished):
    out, _ = here("run", finished[0])
    assert out.count("up to date") == 5
    assert "done" not in out


@pytest.mark.slow
def test_what_is_done_waits_for_no_heavy_library(finished):
    words = [*TINY, f"storage={finished[0]}"]
    command = [sys.executable, "-X", "importtime", "-m", "pipeline.run", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("up to date") == 5, done.stderr
    imported = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")
    }
    assert "numpy" in imported
    assert not imported & {"torch", "ray", "sklearn", "matplotlib", "jinja2", "optuna"}


@pytest.mark.slow
def test_a_changed_key_runs_only_what_depends_on_it(finished, one_ray):
    out, _ = here("run", finished[0], "sample.num_images=130")
    assert [line.split(":")[0] for line in out.splitlines() if "up to date" in line] == [
        "data",
        "train",
        "evaluation",
    ]
    assert "samples: done" in out


@pytest.mark.slow
def test_any_number_of_workers_samples_the_same_images(finished, one_ray):
    storage = finished[0]

    def images():
        files = sorted((storage / "tiny" / "samples").glob("images-*.parquet"))
        return [row for file in files for row in pq.read_table(file)["image"].to_pylist()]

    here("sample", storage, "sample.png=true")
    alone = images()
    assert len(alone) == 120
    assert len(list((storage / "tiny" / "samples" / "png").glob("*.png"))) == 120
    here("sample", storage, "--force", "sample.num_workers=2")
    assert images() == alone
    here("sample", storage, "seed=1")
    assert images() != alone


@pytest.mark.slow
def test_a_stage_without_its_inputs_names_the_command(tmp_path):
    for stage, needed in {"train": "prepare", "sample": "train", "evaluate": "prepare", "report": "prepare"}.items():
        _, err = here(stage, tmp_path, expect=1)
        assert f"python -m pipeline.{needed}" in err
        assert "Traceback" not in err


@pytest.fixture(scope="module")
def whole(finished, one_ray):
    """The storage, every stage made with the tiny configuration again, whatever tests before have changed."""
    here("run", finished[0])
    return finished[0]


def test_more_neighbours_than_images_are_refused_before_training(tmp_path):
    _, err = here("run", tmp_path, "evaluate.neighbours=400", expect=2)
    assert err.startswith("error: evaluate.neighbours: 400 must be below 200, evaluate.num_images")
    assert not (tmp_path / "tiny/train").exists()
    here("evaluate", tmp_path, "evaluate.neighbours=400", expect=1)  # there is no model yet


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "override", "told"),
    [
        (
            "sample",
            "model.latent_dim=33",
            "train was made with another configuration:\n  model.latent_dim: 8 there, 33 here",
        ),
        ("evaluate", "sampler.steps=999", "sampler.steps: 60 there, 999 here"),
        ("report", "train.epochs=999", "train.epochs: 6 there, 999 here"),
        (
            "report",
            "evaluate.draws=7",
            "evaluation was made with another configuration:\n  evaluate.draws: 2 there, 7 here",
        ),
        ("evaluate", "sampler.base_centres=3", "sampler.base_centres: 1 there, 3 here"),  # a key that came later
        (
            "report",
            "sample.temperature=1.5",
            "samples was made with another configuration:\n  sample.temperature: 1.0 there, 1.5 here",
        ),
        ("report", "evaluate.second_extractor=random", "evaluate.second_extractor: 'none' there, 'random' here"),
        ("report", "sample.num_images=99", "samples was made with another configuration"),
    ],
)
def test_a_configuration_that_is_not_the_runs_is_refused(whole, stage, override, told):
    storage = whole
    page = (storage / "tiny/report/index.html").read_bytes()
    config = (storage / "tiny/config.yaml").read_bytes()
    _, err = here(stage, storage, override, expect=2)
    assert told in err
    assert "config.yaml" in err
    assert (storage / "tiny/report/index.html").read_bytes() == page
    assert (storage / "tiny/config.yaml").read_bytes() == config


@pytest.mark.slow
def test_the_runs_own_configuration_is_taken(whole):
    storage = whole
    here("report", storage, "--config", str(storage / "tiny/config.yaml"))
    out, _ = here("report", storage, "--config", str(storage / "tiny/config.yaml"))
    assert "report: up to date" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (
            "evaluation/metrics.json",
            lambda old: old.replace(b'"fd": ', b'"fd": 1'),
            "metrics.json is damaged: sha256",
        ),
        ("train/metrics.jsonl", lambda old: old + b"{}\n", "metrics.jsonl is damaged: sha256"),
        ("train/metrics.jsonl", None, "metrics.jsonl does not exist, although train/manifest.json lists it"),
        ("evaluation/manifest.json", lambda old: old[:50], "evaluation/manifest.json is damaged"),
        ("evaluation/manifest.json", lambda old: b"[]", "evaluation/manifest.json is damaged (it is no mapping)"),
        ("data/manifest.json", lambda old: old.replace(b'"outputs"', b'"output"'), "it lacks outputs"),
    ],
)
def test_what_was_tampered_with_is_not_shown(whole, file, change, told):
    storage = whole
    path = storage / "tiny" / file
    kept = path.read_bytes()
    try:
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(kept))
        _, err = here("report", storage, "--force", expect=1)
        assert told in err
        assert "--force" in err
        assert "Traceback" not in err
    finally:
        path.write_bytes(kept)
