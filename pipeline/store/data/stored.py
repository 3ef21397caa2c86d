"""A split as it lies on storage: row groups read one at a time, each verified, so that it need not fit in memory."""

from collections.abc import Iterator
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

__all__ = ["RowGroup", "StoredSplit"]


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

    def chunks(self, start: int, stop: int) -> Iterator[Tensor]:
        """The images from `start` to `stop` in the split's order, a row group's worth of pixels at a time."""
        for group in self.groups:
            rows = slice(max(start - group.first, 0), min(stop - group.first, group.rows))
            if rows.start < rows.stop:
                yield torch.from_numpy(self.read(group)[0][rows].copy())  # Arrow's memory is read-only

    def some(self, count: int, *key: int | str) -> Images:
        """`count` images in memory, or all if there are fewer: of row groups in random order, fixed by `key`.

        `prepare` writes training images in random order, so that any row groups are a fair sample.
        """
        chosen: list[RowGroup] = []
        left = count = min(count, len(self))
        for number in torch.randperm(len(self.groups), generator=keyed_generator("cpu", *key)).tolist():
            if left <= 0:
                break
            chosen.append(self.groups[number])
            left -= self.groups[number].rows
        pixels, labels = np.empty((count, *self.shape[1:]), np.uint8), np.empty(count, np.int64)
        at = 0
        for group in chosen:
            part, numbers = self.read(group)
            rows = slice(at, min(at + len(part), count))
            pixels[rows], labels[rows] = part[: count - at], numbers[: count - at]
            at = rows.stop
        return Images(torch.from_numpy(pixels), torch.from_numpy(labels), self.classes)
