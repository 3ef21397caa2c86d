"""A run folder made by version 0.1 is read as it lies there: nothing in it is stale, nothing of it is lost."""

import html
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from processes import ROOT, within

from ldcvae import LDCVAE
from pipeline.config.load import load_config
from pipeline.sample.draw import sample_batch
from pipeline.store.data.shards import decode_shard
from pipeline.train import stage as train_stage

OLD = ROOT / "tests/data/run-0.1"
NAMES = {
    "prior": "N(0, I)",
    "gaussian": "Gaussian fit",
    "gmm": "GMM, 2 components",
    "langevin": "Annealed Langevin, 12 steps",
    "sampler": "Sampler net",
    "encoder": "Encoder posterior",
}


def run(stage: str, storage: Path, *options: str, expect: int = 0) -> str:
    """A stage on the old run with its own configuration; what it says."""
    words = ["--config", str(OLD / "config.yaml"), "name=run-0.1", f"storage={storage}", *options]
    return within(stage, *words, expect=expect)[0]


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A folder of runs with a copy of the old one."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(OLD, folder / "run-0.1")
    return folder


@pytest.mark.slow
def test_its_page_is_made_and_names_the_generators(storage):
    assert not (storage / "run-0.1/report").exists()
    said = run("report", storage)
    assert "report: done in" in said
    page = (storage / "run-0.1/report/index.html").read_text()
    rows = dict(re.findall(r'<tr data-row="(\w+)".*?<th scope="row">(.*?) <small>', page, re.S))
    assert {name: html.unescape(rows[name]) for name in NAMES} == NAMES
    assert list(rows) == [*NAMES, "reconstruction", "floor"]
    assert "FD-classifier" in page
    assert "Nothing was logged." not in page
    for picture in ("samples", "reconstructions", "interpolations", "distances", "latents-prior", "latents-sampler"):
        assert (storage / f"run-0.1/report/{picture}.png").read_bytes()[1:4] == b"PNG"
    assert "report: up to date" in run("report", storage)


@pytest.mark.slow
def test_nothing_in_it_is_made_again_until_all_of_it_is_asked_for(storage, monkeypatch):
    before = {path: path.read_bytes() for path in OLD.rglob("*") if path.is_file()}
    assert "data: up to date" in run("prepare", storage)
    assert "samples: up to date" in run("sample", storage)
    for path, content in before.items():
        if path.name != "config.yaml":
            assert (storage / "run-0.1" / path.relative_to(OLD)).read_bytes() == content, path
    # The model that is there is judged anew, by a second extractor.
    judged = ["evaluate.second_extractor=random", "evaluate.chain_kernels=null"]
    assert re.search(r"latents +FD-classifier +FD-random +precision", run("evaluate", storage, *judged))
    metrics = json.loads((storage / "run-0.1/evaluation/metrics.json").read_text())
    assert metrics["second_extractor"]["figure"] == "FD-random"
    assert all(row["fd_second"] > 0 for row in [*metrics["generators"].values(), metrics["floor"]])
    run("report", storage, *judged)
    assert "FD-random&nbsp;" in (storage / "run-0.1/report/index.html").read_text()
    # The sampler's base is fitted otherwise now: the same configuration makes another model, and `run` goes about it.
    trained = []
    monkeypatch.setattr(train_stage, "_work", lambda *_: trained.append(True) or sys.exit(3))
    assert f"data: up to date, {storage}/run-0.1/data" in run("run", storage, expect=3)
    assert trained


def test_its_configuration_is_read_as_it_was():
    content = yaml.safe_load((OLD / "config.yaml").read_text())
    dumped = load_config(OLD / "config.yaml").model_dump(mode="json")
    for section, keys in content.items():
        assert isinstance(keys, dict) or dumped[section] == keys
        for key, value in keys.items() if isinstance(keys, dict) else ():
            assert dumped[section][key] == value, f"{section}.{key}"


@pytest.mark.parametrize("folder", ["model", "train/best"])
def test_its_model_is_loaded_and_samples(folder):
    model = LDCVAE.from_pretrained(OLD / folder)
    assert (model.config.image_shape, model.config.latent_dim, model.config.base_components) == ((1, 8, 8), 4, 2)
    images = model.sample(5, generator=torch.Generator().manual_seed(0))
    assert images.shape == (5, 1, 8, 8)
    assert bool(images.isfinite().all())
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert torch.equal(model.sample(5, generator=torch.Generator().manual_seed(0)), images)


def test_its_model_gives_the_images_that_it_gave():
    """The very pixels that 0.1 wrote: neither weights nor random numbers have another meaning now."""
    stored, _ = decode_shard((OLD / "samples/images-00000.parquet").read_bytes(), (1, 8, 8))
    drawn = sample_batch(LDCVAE.from_pretrained(OLD / "model"), 0, 0, 60).numpy()
    assert drawn.shape == stored.shape
    # On another processor the last bits of a sum may differ, and round a pixel the other way.
    assert abs(drawn.astype(int) - stored.astype(int)).max() <= 1
    assert (drawn != stored).mean() < 0.01
