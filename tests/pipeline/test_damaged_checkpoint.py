"""A checkpoint whose hash does not match is refused by name; test_faults.py goes on from the one before."""

import pytest
import torch
from processes import flip

from pipeline.config.errors import PipelineError
from pipeline.store.checkpoint import load_state, save_state


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_any_flipped_bit_is_found(tmp_path, name, where):
    state = {"step": 12345678, "seconds": 1.5, "weights": torch.arange(64.0), "history": [{"loss": 0.25}]}
    save_state(state, tmp_path)
    assert load_state(tmp_path)["step"] == 12345678
    flip(tmp_path / name, where)
    with pytest.raises(PipelineError, match=r"checkpoint s3://bucket/x is .*damaged"):
        load_state(tmp_path, "s3://bucket/x")
