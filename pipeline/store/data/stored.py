"""A split as it lies on storage: row groups read a few at a time, each verified; it need not fit in memory."""

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ldcvae.training.world import keyed_generator
from pipeline.config.errors import PipelineError
from pipeline.store.data.shards import Images, decode_table, group_digest, index_name
from pipeline.store.run import Run
from pipeline.store.schema import RowGroups, parse_as

__all__ = ["READERS", "PickedImages", "RowGroup", "StoredSplit"]

READERS = 4
"""Threads that read row groups, and how many groups are in memory beside the one in use: a store answers late, and
while one waits for it others can be read, decompressed and compared with their sha256."""


class RowGroup(NamedTuple):
    """Where a row group lies.

    Attributes:
        shard: path under the run's folder.
        number: of the row group in its shard.
        first: position in the split of its first image.
        rows: how many.
        sha256: see `group_digest`.
    """

    shard: str
    number: int
    first: int
    rows: int
    sha256: str


class StoredSplit:
    """One split on storage.

    Args:
        run: whose data set it is.
        split: one of `SPLITS`.

    Attributes:
        shape: (N, C, H, W), as of the pixels in memory.
        groups: in the order of the split.

    Raises:
        PipelineError: if `prepare` has not finished, or an older version did it, which wrote no list of row groups.
    """

    def __init__(self, run: Run, split: str) -> None:
        self._folder = folder = run.folder
        manifest = run.data
        entry = manifest.outputs.get(index_name(split))
        if entry is None:
            raise PipelineError(
                f"{folder.url}/{index_name(split)} does not exist, and without it {split} images cannot be streamed; "
                "run `python -m pipeline.prepare` with the same config and --force"
            )
        self.groups: list[RowGroup] = []
        first = 0
        content = folder.read_verified(index_name(split), entry["sha256"])
        again = "run `python -m pipeline.prepare --force` with the same config"
        for shard, groups in parse_as(RowGroups, content, f"{folder.url}/{index_name(split)}", again).items():
            for number, (rows, digest) in enumerate(groups):
                self.groups.append(RowGroup(shard, number, first, rows, digest))
                first += rows
        channels, height, width = manifest.info["shape"]
        self.shape: tuple[int, int, int, int] = (first, channels, height, width)
        self.classes = tuple(manifest.info["classes"])
        self._footers: dict[str, pq.FileMetaData] = {}  # read once a shard, not once a row group

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, group: RowGroup) -> tuple[np.ndarray, np.ndarray]:
        """(rows, C, H, W) uint8 pixels and (rows,) labels, -1 for none.

        Raises:
            PipelineError: naming shard and row group if it is damaged, or the shard if it cannot be read.
        """
        where = f"{self._folder.url}/{group.shard}: row group {group.number}"
        again = "run `python -m pipeline.prepare` again with --force"
        with self._folder.open(group.shard) as handle:
            try:
                file = pq.ParquetFile(handle, metadata=self._footers.get(group.shard))
                self._footers[group.shard] = file.metadata
                table = file.read_row_group(group.number, columns=["image", "label"], use_threads=False)
                pixels, labels = decode_table(table, self.shape[1:])
            except (pa.ArrowException, OSError, ValueError, IndexError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the storage's, not Parquet's
                raise PipelineError(f"{where} is damaged: {error}; {again}") from error
        if (found := group_digest(pixels, labels)) != group.sha256:
            raise PipelineError(
                f"{where} is damaged: sha256 {found[:12]}… where it was written with {group.sha256[:12]}…; {again}"
            )
        return pixels, labels

    def read_each(self, groups: Iterable[RowGroup]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`read` of each of some row groups, in their order; the next `READERS` are read meanwhile."""
        waiting = iter(groups)
        with ThreadPoolExecutor(READERS, thread_name_prefix="row-groups") as readers:
            pending = deque(readers.submit(self.read, group) for group in islice(waiting, READERS))
            while pending:
                found = pending.popleft().result()
                pending.extend(readers.submit(self.read, group) for group in islice(waiting, 1))
                yield found

    def chunks(self, start: int, stop: int) -> Iterator[Tensor]:
        """The images from `start` to `stop` in the split's order, a row group's worth of pixels at a time."""
        wanted = [group for group in self.groups if group.first < stop and start < group.first + group.rows]
        for group, (pixels, _) in zip(wanted, self.read_each(wanted), strict=True):
            rows = slice(max(start - group.first, 0), min(stop - group.first, group.rows))
            yield torch.from_numpy(pixels[rows].copy())  # Arrow's memory is read-only

    def choose(self, count: int, *key: int | str) -> "StoredSplit":
        """`count` of the images, or all if there are fewer: of row groups in random order, fixed by `key`.

        `prepare` writes training images in random order, so that any row groups are a fair sample. Nothing is read.
        """
        chosen = copy.copy(self)
        chosen.groups, at = [], 0
        count = min(count, len(self))
        for number in torch.randperm(len(self.groups), generator=keyed_generator("cpu", *key)).tolist():
            if at == count:
                break
            group = self.groups[number]
            chosen.groups.append(group._replace(first=at, rows=min(group.rows, count - at)))
            at += chosen.groups[-1].rows
        chosen.shape = (count, *self.shape[1:])
        return chosen

    def pick(self, where: Tensor) -> "PickedImages":
        """The images at some positions, which increase. Nothing is read."""
        return PickedImages(self, where)

    def load(self) -> Images:
        """All of it in memory."""
        pixels, labels = np.empty(self.shape, np.uint8), np.empty(len(self), np.int64)
        for group, (part, numbers) in zip(self.groups, self.read_each(self.groups), strict=True):
            rows = slice(group.first, group.first + group.rows)
            pixels[rows], labels[rows] = part[: group.rows], numbers[: group.rows]
        return Images(torch.from_numpy(pixels), torch.from_numpy(labels), self.classes)


class PickedImages:
    """Single images of a split on storage, read when they are asked for.

    Args:
        split: whose images.
        where: their positions in it, which increase.

    Attributes:
        shape: (N, C, H, W).
    """

    def __init__(self, split: StoredSplit, where: Tensor) -> None:
        self._split, self._where = split, where
        self.shape = (len(where), *split.shape[1:])

    def __len__(self) -> int:
        return len(self._where)

    def pick(self, where: Tensor) -> "PickedImages":
        """Some of them, by their positions among them."""
        return PickedImages(self._split, self._where[where])

    def chunks(self, start: int, stop: int) -> Iterator[Tensor]:
        """The images from `start` to `stop` in their order, those of a row group at a time."""
        where, groups = self._where[start:stop].numpy(), self._split.groups
        ends = np.searchsorted(where, [group.first + group.rows for group in groups])
        wanted = [
            (group, where[first:end] - group.first)
            for group, first, end in zip(groups, [0, *ends[:-1]], ends, strict=True)
            if first < end
        ]
        read = self._split.read_each(group for group, _ in wanted)
        for (_, rows), (pixels, _) in zip(wanted, read, strict=True):
            yield torch.from_numpy(pixels[rows])
