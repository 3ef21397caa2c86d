"""What the scripts of both environments hand to each other: a folder of `.npz` and `.json` files, and names in it.

    spec.json                            networks, budget and settings, written by export.py
    images.npz                           train, validation, test: (N, C, H, W) uint8
    samples/<model>-<sampler>-<seed>.npz generated images, written by train_pythae.py
    reconstructions/<model>-<seed>.npz   of the images of the split that is judged
    trained/<model>-<seed>.json          seconds, best epoch, versions; written last, so that a cell is whole
    peers.json, peers.md                 all figures and the tables, written by judge.py

Needs numpy only.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LABELS", "SAMPLERS", "cell", "digest", "find", "read_images", "read_json", "write_images", "write_json"]

LABELS = {"vae": "VAE", "wae_mmd": "WAE-MMD", "rae_l2": "RAE-L2", "vamp": "VampPrior"}
"""The models, and what the table calls them."""

SAMPLERS = {
    "vae": ("normal", "gmm"),
    "wae_mmd": ("normal", "gmm"),
    "rae_l2": ("normal", "gmm"),
    "vamp": ("vamp", "vamp_prior", "gmm"),
}
"""The samplers of each model; `vamp` is pythae's VAMPSampler, `vamp_prior` the prior as the model was trained."""

# Other names that the project's own results may have for the same thing, in small letters and digits only.
_ALIASES = {
    "vae": ("vae", "elbo"),
    "wae_mmd": ("waemmd", "wae"),
    "rae_l2": ("rael2", "rae"),
    "vamp": ("vamp", "vampprior", "pseudoinputs", "learntprior", "ownprior", "prior"),
    "vamp_prior": ("vamp", "vampprior", "pseudoinputs", "learntprior", "ownprior", "prior"),
    "normal": ("prior", "normal", "standardnormal"),
    "gmm": ("gmm",),
}


def find(records: Iterable[Mapping[str, Any]], key: str, name: str) -> Mapping[str, Any] | None:
    """The record whose `key` names the same model or sampler as `name`; None if there is none.

    Example:
        >>> find([{"generator": "gmm", "fd": 1.0}, {"generator": "prior", "fd": 2.0}], "generator", "normal")
        {'generator': 'prior', 'fd': 2.0}
    """
    named = {re.sub("[^a-z0-9]", "", str(record[key]).lower()): record for record in records}
    return next((named[alias] for alias in _ALIASES[name] if alias in named), None)


def cell(folder: Path, kind: str, *parts: str | int) -> Path:
    """Path of a cell's file; `kind` is samples, reconstructions or trained.

    Example:
        >>> str(cell(Path("peers"), "samples", "vae", "gmm", 0))
        'peers/samples/vae-gmm-0.npz'
    """
    return folder / kind / ("-".join(map(str, parts)) + (".json" if kind == "trained" else ".npz"))


def write_images(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays of images, uint8 or float in [0, 1], as uint8; a reader never sees half a file.

    Raises:
        ValueError: if images are not (N, C, H, W), or not finite.
    """
    content = {}
    for name, images in arrays.items():
        if images.ndim != 4:
            raise ValueError(f"{name} must be (N, C, H, W) images, got shape {images.shape}")
        if images.dtype != np.uint8:
            if not np.isfinite(images).all():
                raise ValueError(f"{name} holds pixels that are not finite")
            images = np.rint(images.clip(0.0, 1.0) * 255.0).astype(np.uint8)
        content[name] = images
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **content)
    os.replace(temporary, path)


def read_images(path: Path, name: str = "images") -> np.ndarray:
    """One array of images that `write_images` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text("utf-8"))


def digest(spec: Mapping[str, Any]) -> str:
    """What tells one spec from another; a cell made with another spec is made again."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
