"""The data set format: Parquet shards of uint8 images under `<run>/data/`, described by the stage's manifest.

A shard `data/<split>-00000.parquet` has columns `image` (fixed-size binary, C·H·W bytes, channels first), `label`
(int64, null where there is none) and `split`, in row groups of about `GROUP_BYTES` of pixels. The manifest's `info`
holds the shape, the counts, the class names, and for every output its sha256, so a damaged or half-written shard is
refused by name. `data/row_groups/<split>.json` holds the rows and a sha256 of every row group, so that one can be
read and verified without the rest of its shard.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.config.errors import PipelineError
from pipeline.store.folder import Folder
from pipeline.store.manifest import Manifest, Output
from pipeline.store.run import Run

__all__ = [
    "GROUP_BYTES",
    "SHARD_BYTES",
    "SPLITS",
    "Images",
    "Shard",
    "decode_shard",
    "decode_table",
    "encode_shard",
    "group_digest",
    "index_name",
    "load_split",
    "rows_per_group",
    "rows_per_shard",
    "write_index",
    "write_shard",
    "write_split",
]

SPLITS = ("train", "validation", "test")

GROUP_BYTES = 4 * 2**20
"""Pixels of a row group: large enough for one request to an object store, small enough to hold several."""


SHARD_BYTES = 128 * 2**20
"""Pixels of a shard at most: whoever writes or reads a whole one holds them in memory."""


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


def rows_per_group(shape: Sequence[int]) -> int:
    """Rows of a row group of (C, H, W) images.

    Example:
        >>> rows_per_group((3, 64, 64))
        341
    """
    return max(1, GROUP_BYTES // int(np.prod(shape)))


def rows_per_shard(shape: Sequence[int], images_per_shard: int | None) -> int:
    """Rows of a shard of (C, H, W) images: `images_per_shard` if given, but no more pixels than `SHARD_BYTES`.

    Example:
        >>> rows_per_shard((3, 256, 256), 10_000), rows_per_shard((1, 8, 8), None)
        (682, 2097152)
    """
    fitting = max(1, SHARD_BYTES // int(np.prod(shape)))
    return fitting if images_per_shard is None else min(images_per_shard, fitting)


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
    flat = pa.py_buffer(np.ascontiguousarray(images))
    table = pa.table(
        {
            "image": pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(images), [None, flat]),
            "label": pa.array([None] * len(images) if labels is None else labels, pa.int64()),
            "split": pa.array([split] * len(images), pa.string()),
        }
    )
    shape = ",".join(str(side) for side in images.shape[1:])
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({"shape": shape}),
        buffer,
        row_group_size=rows_per_group(images.shape[1:]),
        use_dictionary=["label", "split"],  # images do not repeat
        compression="zstd",
    )
    return buffer.getvalue()


def index_name(split: str) -> str:
    """Path of a split's list of row groups, under the run's folder."""
    return f"data/row_groups/{split}.json"


def group_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """The sha256 that stands for a row group: of its pixels, then its labels (int64, -1 for none)."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data.cast("B"))
    digest.update(np.ascontiguousarray(labels, "<i8").data)
    return digest.hexdigest()


class Shard(NamedTuple):
    """A shard that was written.

    Attributes:
        output: its path, size and sha256.
        groups: rows and digest of each row group.
    """

    output: Output
    groups: list[tuple[int, str]]


def write_shard(folder: Folder, split: str, number: int, images: np.ndarray, labels: np.ndarray | None) -> Shard:
    """Write shard `number` of a split.

    Args:
        folder: the run's.
        split: one of `SPLITS`.
        number: from 0 up.
        images: (n, C, H, W) uint8.
        labels: (n,) integers, or None.
    """
    output = _write(folder, f"data/{split}-{number:05d}.parquet", encode_shard(images, labels, split))
    known = np.full(len(images), -1) if labels is None else labels
    step = rows_per_group(images.shape[1:])
    slices = [slice(first, min(first + step, len(images))) for first in range(0, len(images), step)]
    return Shard(output, [(rows.stop - rows.start, group_digest(images[rows], known[rows])) for rows in slices])


def write_index(folder: Folder, split: str, shards: Sequence[Shard]) -> Output:
    """Write the list of row groups of a split, whose shards are given in order."""
    groups = {shard.output.name: shard.groups for shard in shards}
    return _write(folder, index_name(split), json.dumps(groups).encode())


def write_split(
    folder: Folder,
    split: str,
    images: np.ndarray,
    labels: np.ndarray | None,
    images_per_shard: int | None,
    indices: np.ndarray | None = None,
) -> list[Output]:
    """Write one split as shards under `data/`, holding one shard at a time.

    Args:
        folder: the run's.
        split: one of `SPLITS`.
        images: (N, C, H, W) uint8.
        labels: (N,) integers, or None.
        images_per_shard: see `rows_per_shard`.
        indices: which images make up the split, in this order; None for all.

    Returns:
        The shards, and the list of their row groups.
    """
    indices = np.arange(len(images)) if indices is None else indices
    step = rows_per_shard(images.shape[1:], images_per_shard)
    shards = []
    for number, first in enumerate(range(0, len(indices), step)):
        part = indices[first : first + step]
        shards.append(write_shard(folder, split, number, images[part], None if labels is None else labels[part]))
    return [*(shard.output for shard in shards), write_index(folder, split, shards)]


def _write(folder: Folder, name: str, content: bytes) -> Output:
    folder.write(name, content)
    return Output.of(name, content)


def _shards(manifest: Manifest, split: str) -> list[str]:
    return [name for name in sorted(manifest.outputs) if name.startswith(f"data/{split}-")]


def decode_shard(content: bytes, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """What `encode_shard` wrote: (n, C, H, W) uint8 images of the given (C, H, W) shape, and labels, -1 for none."""
    return decode_table(pq.read_table(io.BytesIO(content), columns=["image", "label"]), shape)


def decode_table(table: pa.Table, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """`decode_shard` for columns `image` and `label` that have been read; the pixels share the table's memory."""
    table = table.combine_chunks()
    column = table["image"].combine_chunks()
    size = int(np.prod(shape))
    flat = np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * size, offset=column.offset * size)
    labels = table["label"].fill_null(-1).to_numpy()
    return flat.reshape(len(column), *shape), labels


def load_split(run: Run, split: str) -> Images:
    """A whole split in memory.

    Args:
        run: whose data set it is.
        split: one of `SPLITS`.

    Raises:
        PipelineError: if `prepare` has not finished, the split is empty, or a shard is missing or damaged.
    """
    manifest = run.data
    shards, shape = _shards(manifest, split), manifest.info["shape"]
    if not shards:
        raise PipelineError(f"{run.folder.url}/data has no {split} images; splits: {manifest.info['counts']}")
    pixels, labels = np.empty((0, *shape), np.uint8), []
    count = 0
    for name in shards:
        file = pq.ParquetFile(io.BytesIO(run.output("data", name)))
        if name == shards[0]:  # no other is larger; what is never written to takes no memory
            pixels = np.empty((len(shards) * file.metadata.num_rows, *shape), np.uint8)
        for number in range(file.num_row_groups):  # by row groups, so that the whole is in memory once
            part, numbers = decode_table(file.read_row_group(number, columns=["image", "label"]), shape)
            pixels[count : count + len(part)] = part
            labels.append(numbers)
            count += len(part)
    known = torch.from_numpy(np.concatenate(labels).astype(np.int64))
    return Images(torch.from_numpy(pixels[:count]), known, tuple(manifest.info["classes"]))
