"""Checkpoints: any nested state as safetensors plus JSON, with hashes; nothing is pickled.

A checkpoint folder holds `tensors.safetensors` (every tensor of the state, by its path) and `state.json` (the
state's structure and plain values, and the sha256 of the tensors), written last.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from pipeline.errors import PipelineError
from pipeline.storage import sha256

__all__ = ["load_state", "save_state"]


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        # A copy: tied tensors share memory, which safetensors refuses, and training goes on while we write.
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"$tensor": path}
    if isinstance(value, dict):
        # JSON has string keys only, but optimizers number their parameters.
        return {"$dict": [[key, _split(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}: checkpoints hold tensors and plain values only")


def _join(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict) and "$tensor" in value:
        return tensors[value["$tensor"]]
    if isinstance(value, dict):
        return {key: _join(item, tensors) for key, item in value["$dict"]}
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    return value


def save_state(state: dict[str, Any], folder: str | Path) -> None:
    """Write a nested state of dicts, lists, tensors and plain values into an existing local folder.

    Raises:
        TypeError: naming a value of another type.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save_state({"step": 3, "optimizer": {0: torch.ones(2)}}, folder)
        >>> load_state(folder)
        {'step': 3, 'optimizer': {0: tensor([1., 1.])}}
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _split(state, "state", tensors)
    content = save(tensors)
    (Path(folder) / "tensors.safetensors").write_bytes(content)
    description = {"format": 1, "sha256": sha256(content), "state": structure}
    (Path(folder) / "state.json").write_text(json.dumps(description, allow_nan=False))


def load_state(folder: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        PipelineError: if the checkpoint is incomplete or its hash does not match, naming the folder.
    """
    try:
        description = json.loads((Path(folder) / "state.json").read_text())
        content = (Path(folder) / "tensors.safetensors").read_bytes()
    except (FileNotFoundError, ValueError) as error:
        raise PipelineError(f"checkpoint {folder} is incomplete: {error}") from None
    if sha256(content) != description["sha256"]:
        raise PipelineError(f"checkpoint {folder} is damaged: its sha256 does not match state.json")
    return _join(description["state"], load(content))
