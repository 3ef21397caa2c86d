"""The data set format: Parquet shards of uint8 images under `<run>/data/`, described by the stage's manifest.

A shard `data/<split>-00000.parquet` has columns `image` (fixed-size binary, C·H·W bytes, channels first), `label`
(int64, null where there is none) and `split`. The manifest's `info` holds the shape, the counts, the class names,
and for every output its sha256, so a damaged or half-written shard is refused by name.
"""

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.stage import Manifest, read_manifest
from pipeline.storage import Folder

__all__ = ["SPLITS", "Images", "decode_shard", "encode_shard", "load_split", "read_dataset_manifest", "write_split"]

SPLITS = ("train", "validation", "test")


class Images(NamedTuple):
    """One split in memory.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64, -1 where there is no label.
        classes: names of the labels, empty without labels.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def encode_shard(images: np.ndarray, labels: np.ndarray | None, split: str) -> bytes:
    """One Parquet shard.

    Args:
        images: (n, C, H, W) uint8.
        labels: (n,) integers, or None.
        split: one of `SPLITS`.

    Raises:
        ValueError: if images are not uint8 of four dimensions.

    Example:
        >>> shard = encode_shard(np.zeros((2, 1, 8, 8), np.uint8), np.array([3, 4]), "train")
        >>> pq.read_table(io.BytesIO(shard)).column_names
        ['image', 'label', 'split']
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be (n, C, H, W) uint8, got {images.shape} {images.dtype}")
    size = int(np.prod(images.shape[1:]))
    flat = pa.py_buffer(np.ascontiguousarray(images).tobytes())
    table = pa.table(
        {
            "image": pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(images), [None, flat]),
            "label": pa.array([None] * len(images) if labels is None else labels, pa.int64()),
            "split": pa.array([split] * len(images), pa.string()),
        }
    )
    shape = ",".join(str(side) for side in images.shape[1:])
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"shape": shape}), buffer, compression="zstd")
    return buffer.getvalue()


def write_split(
    run: Folder, split: str, images: np.ndarray, labels: np.ndarray | None, images_per_shard: int
) -> list[str]:
    """Write one split as shards under `data/`; returns their paths under the run's folder."""
    names = []
    for number, start in enumerate(range(0, len(images), images_per_shard)):
        part = slice(start, start + images_per_shard)
        name = f"data/{split}-{number:05d}.parquet"
        run.write(name, encode_shard(images[part], None if labels is None else labels[part], split))
        names.append(name)
    return names


def read_dataset_manifest(run: Folder) -> Manifest:
    """The manifest of `data/`.

    Raises:
        PipelineError: if `pipeline.prepare` has not finished.
    """
    return read_manifest(run, "data", "pipeline.prepare")


def _shards(manifest: Manifest, split: str) -> list[str]:
    return [name for name in sorted(manifest.outputs) if name.startswith(f"data/{split}-")]


def decode_shard(content: bytes, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """What `encode_shard` wrote: (n, C, H, W) uint8 images of the given (C, H, W) shape, and labels, -1 for none."""
    table = pq.read_table(io.BytesIO(content), columns=["image", "label"]).combine_chunks()
    column = table["image"].combine_chunks()
    size = int(np.prod(shape))
    flat = np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * size, offset=column.offset * size)
    labels = table["label"].fill_null(-1).to_numpy()
    return flat.reshape(len(column), *shape), labels


def iterate_shards(run: Folder, manifest: Manifest, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The shards of a split, each verified: (n, C, H, W) uint8 images and (n,) labels.

    Raises:
        PipelineError: naming a shard that is missing or whose hash does not match.
    """
    for name in _shards(manifest, split):
        yield decode_shard(run.read_verified(name, manifest.outputs[name]["sha256"]), manifest.info["shape"])


def load_split(run: Folder, split: str) -> Images:
    """A whole split in memory.

    Args:
        run: the run's folder.
        split: one of `SPLITS`.

    Raises:
        PipelineError: if `prepare` has not finished, the split is empty, or a shard is missing or damaged.
    """
    manifest = read_dataset_manifest(run)
    parts = list(iterate_shards(run, manifest, split))
    if not parts:
        raise PipelineError(f"{run.url}/data has no {split} images; splits: {manifest.info['counts']}")
    pixels = torch.from_numpy(np.concatenate([images for images, _ in parts]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]).astype(np.int64))
    return Images(pixels, labels, tuple(manifest.info["classes"]))
