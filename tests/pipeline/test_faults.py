"""Training survives what clusters do to it: killed drivers and workers, bad losses, unfit configurations."""

import json
import re
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from processes import finish, flip, here, kill_driver, kill_worker, start, wait_for

from ldcvae import LDCVAE, AutoencoderSettings, SamplerSettings, fit
from ldcvae.training.world import World
from pipeline.config.load import load_config
from pipeline.store.checkpoint import load_state
from pipeline.store.data.shards import load_split
from pipeline.store.lease import LOCK
from pipeline.store.run import open_run
from pipeline.train import fit as train_fit
from pipeline.train import worker

TRAIN = ["train.epochs=40", "train.checkpoint_epochs=4", "sampler.steps=400", "sampler.checkpoint_steps=40"]
TRAIN += ["model.width=128", "sampler.width=256"]  # as in the library


def model_hash(storage):
    manifest = json.loads((storage / "tiny" / "train" / "manifest.json").read_text())
    return manifest["outputs"]["model/model.safetensors"]["sha256"]


def history(storage):
    return [json.loads(line) for line in (storage / "tiny" / "train" / "metrics.jsonl").read_text().splitlines()]


def registered(storage, phase):
    """Steps of the phase's checkpoints that Ray Train has on record: uploaded in full."""
    records = [
        path.read_text() for path in (storage / "tiny" / "train").glob("ray-*/checkpoint_manager_snapshot.json")
    ]
    return sorted({int(step) for text in records for step in re.findall(rf"{phase}_(\d{{8}})", text)})


def check_complete(storage):
    lines = history(storage)
    assert [line["epoch"] for line in lines if line["phase"] == "autoencoder"] == list(range(1, 41))
    assert [line["step"] for line in lines if line["phase"] == "sampler"] == list(range(40, 401, 40))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, one_ray):
    """A finished run that nobody disturbed, and its prepared data to copy."""
    storage = tmp_path_factory.mktemp("undisturbed")
    here("prepare", storage)
    here("train", storage, *TRAIN)
    check_complete(storage)
    return storage


@pytest.mark.slow
def test_fit_ends_in_the_weights_of_the_pipelines_worker(prepared):
    run = open_run(load_config(overrides=[f"storage={prepared}", "name=tiny"]))
    trained = LDCVAE.from_pretrained(run.folder.path("model"))
    images, held_out = (load_split(run, split).pixels for split in ("train", "validation"))
    fitted = fit(
        images,
        validation=held_out,
        autoencoder=AutoencoderSettings(epochs=40),
        sampler=SamplerSettings(steps=400, particles=64, checkpoint_steps=40),
        progress=False,
    )
    assert fitted.config == trained.config
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, fitted.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "phase"),
    [
        (kill_driver, "autoencoder"),
        # In phase `decoder`: test_decoder_stage.
        pytest.param(kill_worker, "sampler", marks=pytest.mark.drill),
        pytest.param(kill_driver, "sampler", marks=pytest.mark.drill),
        pytest.param(kill_worker, "autoencoder", marks=pytest.mark.drill),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_killed_training_goes_on_from_the_last_checkpoint(tmp_path, prepared, phase, kill):
    here("prepare", tmp_path)
    process = start("train", tmp_path, *TRAIN)
    lock = tmp_path / "tiny" / LOCK
    wait_for(lock.exists, "lock")
    for seed in (0, 1):  # the same command, and another
        _, err = here("train", tmp_path, *TRAIN, f"seed={seed}", expect=1)
        assert f"is in use: process {process.pid} " in err
    wait_for(lambda: len(registered(tmp_path, phase)) > 1, f"second {phase} checkpoint")
    kill(process)
    damaged = None
    if kill is kill_driver:
        assert lock.exists()
        assert not (tmp_path / "tiny" / "train" / "manifest.json").exists()
        before = history(tmp_path)
        *_, checkpoint, newest = registered(tmp_path, phase)
        (damaged,) = (tmp_path / "tiny" / "train").glob(f"ray-*/{phase}_{newest:08d}/tensors.safetensors")
        flip(damaged)
        out, _ = here("train", tmp_path, *TRAIN)
        assert f"{phase}_{newest:08d} is damaged" in out
        assert "going back to the one before" in out
        assert out.count("damaged") == 1
        # What the checkpoint held was not done again: its records are the first run's, to the time of day.
        held = [line for line in before if line["phase"] != phase or line["step"] <= checkpoint]
        assert history(tmp_path)[: len(held)] == held
    else:
        finish(process)
    check_complete(tmp_path)
    assert not lock.exists()
    kept = list((tmp_path / "tiny" / "train").glob("ray-*/*_*/tensors.safetensors"))
    assert len(kept) == 2
    for one in kept:  # none of them was deleted along with the damaged one, which stays only if it may be the last
        if phase == "autoencoder" or one != damaged:
            load_state(one.parent)
    # Everything random is keyed by step, so the killed run ends in the very same weights.
    assert model_hash(tmp_path) == model_hash(prepared)


@pytest.mark.drill
def test_two_workers_train_and_leave_the_same_kind_of_run(tmp_path, prepared):
    here("prepare", tmp_path)
    here("train", tmp_path, *TRAIN, "train.num_workers=2")
    check_complete(tmp_path)
    alone, together = history(prepared), history(tmp_path)
    # Gradients are equal up to rounding, which grows along the path.
    assert together[0]["reconstruction"] == pytest.approx(alone[0]["reconstruction"], rel=1e-3)
    assert together[39]["validation_mse"] == pytest.approx(alone[39]["validation_mse"], rel=0.05)


def test_a_loss_that_is_not_finite_stops_with_step_term_and_images(tmp_path, monkeypatch):
    """Without Ray: a training that ends hands its outcome on."""
    there = SimpleNamespace(remote=lambda *_: None)
    job = {"threads": 1, "board": SimpleNamespace(write=there, say=there)}
    monkeypatch.setattr(worker, "train_world", World)
    monkeypatch.setattr(worker, "_resume", lambda say: (None, []))
    monkeypatch.setattr(train_fit, "connect", lambda config: nullcontext())
    monkeypatch.setattr(train_fit, "_fit", lambda run, name: worker.train_worker({"run": run, "name": name} | job))
    here("prepare", tmp_path)
    _, err = here("train", tmp_path, *TRAIN, "train.learning_rate=1e12", "train.objective=elbo", expect=1)
    assert "is not finite at step" in err
    assert "training images" in err
    assert "train.learning_rate" in err
    assert "Traceback" not in err
    assert not (tmp_path / "tiny" / "train" / "manifest.json").exists()


@pytest.mark.slow
def test_config_and_data_that_do_not_fit_are_one_message_before_ray_starts(tmp_path):
    here("prepare", tmp_path)
    overrides = ["model.network=resnet", "data.image_size=null", "train.num_workers=3"]
    _, err = here("train", tmp_path, *overrides, expect=2)
    assert "train.batch_size: 64 does not divide over train.num_workers=3" in err
    assert "sampler.particles: 64 does not divide" in err


@pytest.mark.slow
def test_a_damaged_model_is_refused_by_name(tmp_path, prepared):
    storage = tmp_path / "copy"
    shutil.copytree(prepared, storage)
    weights = storage / "tiny" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    _, err = here("sample", storage, *TRAIN, expect=1)
    assert "model/model.safetensors is damaged" in err
