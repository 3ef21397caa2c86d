"""A checkpoint whose hash does not match is refused by name, and training goes on from the one before."""

import json

import pytest
import torch
from processes import here, kill_driver, start, wait_for

from pipeline.config.errors import PipelineError
from pipeline.store.checkpoint import load_state, save_state

TRAIN = ["train.epochs=30", "train.checkpoint_epochs=3", "sampler.steps=200", "sampler.checkpoint_steps=40"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_any_flipped_bit_is_found(tmp_path, name, where):
    state = {"step": 12345678, "seconds": 1.5, "weights": torch.arange(64.0), "history": [{"loss": 0.25}]}
    save_state(state, tmp_path)
    assert load_state(tmp_path)["step"] == 12345678
    flip(tmp_path / name, where)
    with pytest.raises(PipelineError, match=r"checkpoint s3://bucket/x is .*damaged"):
        load_state(tmp_path, "s3://bucket/x")


def flip(path, where=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, one_ray):
    here("prepare", tmp_path)
    process = start("train", tmp_path, *TRAIN)
    folder = tmp_path / "tiny" / "train"

    def registered():
        """Checkpoints that Ray knows of, oldest first."""
        for snapshot in folder.glob("ray-*/checkpoint_manager_snapshot.json"):
            results = json.loads(snapshot.read_text() or "{}").get("checkpoint_results", [])
            return [result["checkpoint_dir_name"] for result in results]
        return []

    wait_for(lambda: len(registered()) == 2, "second checkpoint")
    kill_driver(process)
    _, newest = registered()
    (damaged,) = folder.glob(f"ray-*/{newest}/tensors.safetensors")
    flip(damaged)
    out, _ = here("train", tmp_path, *TRAIN)
    assert f"{newest} is damaged" in out
    assert "going back to the one before" in out
    assert out.count("damaged") == 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["phase"] == "autoencoder"] == list(range(1, 31))
    kept = registered()
    assert len(kept) == 2
    for name in kept:  # none of them was deleted along with the damaged one
        (checkpoint,) = folder.glob(f"ray-*/{name}")
        load_state(checkpoint)
