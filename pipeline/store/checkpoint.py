"""Checkpoints: any nested state as safetensors plus JSON, with hashes; nothing is pickled.

A checkpoint folder holds `tensors.safetensors` (every tensor of the state, by its path) and `state.json` (the
state's structure and plain values, with hashes of both), written last.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.config.errors import PipelineError
from pipeline.store.folder import Folder, fingerprint
from pipeline.store.manifest import say

__all__ = ["NewestCheckpoint", "load_state", "save_state"]


def _sha256_of(file: Path) -> str:
    """Hex digest of a file, which is never held whole."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _load(file: Path) -> dict[str, torch.Tensor]:
    # `load_file` maps the file; copies do not care when a shared storage deletes it under them.
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The structure with names for its tensors, which go to `tensors`: themselves, not copies, where they can."""
    if isinstance(value, torch.Tensor):
        # The state of a large network is the largest thing that a worker has: a copy of all of it would double that.
        tensors[path] = value.detach().cpu().contiguous()
        return {"$tensor": path}
    if isinstance(value, dict):
        # JSON has string keys only, but optimizers number their parameters.
        return {"$dict": [[key, _split(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}: checkpoints hold tensors and plain values only")


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, with copies of those that share memory or are a part of something, which safetensors refuses."""
    found, held = {}, set()
    for path, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shares = storage.data_ptr() in held or storage.nbytes() != tensor.nbytes
        found[path] = tensor.clone() if shares else tensor
        held.add(storage.data_ptr())
    return found


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
        OSError: if the folder's disk refuses.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save_state({"step": 3, "optimizer": {0: torch.ones(2)}}, folder)
        >>> load_state(folder)
        {'step': 3, 'optimizer': {0: tensor([1., 1.])}}
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _split(state, "state", tensors)
    file = Path(folder) / "tensors.safetensors"
    try:
        save_file(_apart(tensors), file)
    except SafetensorError as error:
        raise OSError(f"cannot write {file}: {error}") from error
    description = {
        "format": 1,
        "sha256": _sha256_of(file),
        "state_sha256": fingerprint(structure),
        "state": structure,
    }
    (Path(folder) / "state.json").write_text(json.dumps(description, allow_nan=False))


def load_state(folder: str | Path, name: str = "") -> dict[str, Any]:
    """Read what `save_state` wrote.

    Args:
        folder: local folder.
        name: what to call it in errors, where the folder is a copy; empty for the folder itself.

    Raises:
        PipelineError: if the checkpoint is incomplete or a hash does not match, naming it.
    """
    name = name or str(folder)
    try:
        description = json.loads((Path(folder) / "state.json").read_text())
        structure, hashes = description["state"], (description["state_sha256"], description["sha256"])
        found = _sha256_of(file := Path(folder) / "tensors.safetensors")
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PipelineError(f"checkpoint {name} is incomplete or damaged: {error}") from None
    try:
        if (fingerprint(structure), found) != hashes:
            raise ValueError("its content does not match the sha256 in state.json")
        return _join(structure, _load(file))
    except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise PipelineError(f"checkpoint {name} is damaged: {error}") from None


class NewestCheckpoint:
    """The newest checkpoint of a folder on storage; an older one goes when a newer is whole.

    Example:
        >>> kept = NewestCheckpoint(Folder(tempfile.mkdtemp()))
        >>> kept.load() is None
        True
        >>> kept.save({"step": 3}, 3)
        >>> kept.load()
        {'step': 3}
    """

    def __init__(self, folder: Folder):
        self.folder = folder

    def _names(self) -> list[str]:
        # state.json is written last, so a folder that has it is whole.
        return [name.removesuffix("/state.json") for name in self.folder.files("*/state.json")]

    def save(self, state: dict[str, Any], progress: int) -> None:
        """Keep this state; `progress` grows from one to the next."""
        earlier = self._names()
        name = f"{progress:06d}"
        with tempfile.TemporaryDirectory() as temporary:
            save_state(state, temporary)
            for file in ("tensors.safetensors", "state.json"):
                self.folder.write(f"{name}/{file}", (Path(temporary) / file).read_bytes())
        for old in earlier:
            if old != name:
                self.folder.remove(old)

    def load(self) -> dict[str, Any] | None:
        """The newest whole state, or None; of a damaged one it is told that the work begins anew.

        Raises:
            PipelineError: when the storage refuses.
        """
        for name in reversed(self._names()):
            where = self.folder / name
            with where.local_copy() as path:
                try:
                    return load_state(path, where.url)
                except PipelineError as error:
                    say(f"{error}; it is not gone on from")
        return None
