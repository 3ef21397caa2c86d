"""A checkpoint whose hash does not match is refused by name; test_faults.py goes on from the one before."""

import pytest
import torch
from processes import flip

from pipeline.config.errors import PipelineError
from pipeline.store.checkpoint import NewestCheckpoint, load_state, save_state
from pipeline.store.folder import Folder


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_any_flipped_bit_is_found(tmp_path, name, where):
    state = {"step": 12345678, "seconds": 1.5, "weights": torch.arange(64.0), "history": [{"loss": 0.25}]}
    save_state(state, tmp_path)
    assert load_state(tmp_path)["step"] == 12345678
    flip(tmp_path / name, where)
    with pytest.raises(PipelineError, match=r"checkpoint s3://bucket/x is .*damaged"):
        load_state(tmp_path, "s3://bucket/x")


def test_work_with_one_checkpoint_begins_anew_when_that_is_damaged(tmp_path, capsys):
    kept = NewestCheckpoint(Folder(str(tmp_path)))
    kept.save({"step": 5}, 5)
    flip(tmp_path / "000005/state.json")
    assert kept.load() is None
    assert f"checkpoint {tmp_path}/000005 is " in capsys.readouterr().out
    kept.save({"step": 1}, 1)
    assert kept.load() == {"step": 1}
