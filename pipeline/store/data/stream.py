"""Batches of images that stay on storage: row groups are streamed, in an order that any step can be found in."""

from bisect import bisect_left, bisect_right
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ldcvae.training.feed import Batch
from ldcvae.training.world import World, keyed_generator
from pipeline.store.data.stored import RowGroup, StoredSplit
from pipeline.store.run import Run

__all__ = ["WINDOW_BYTES", "Streamed", "StreamedSplit", "window_bytes"]

WINDOW_BYTES = 64 * 2**20
"""Pixels that streaming shuffles at a time; three such windows are in memory at most."""


class _Piece(NamedTuple):
    """Rows of a row group, from `start` to `stop`."""

    group: RowGroup
    start: int
    stop: int


class _Plan:
    """One rank's stream in one epoch: which rows, cut into windows, shuffled within each.

    Attributes:
        windows: pieces of consecutive row groups.
        starts: position in the stream of each window's first row, and the stream's length.
    """

    def __init__(self, windows: list[list[_Piece]], key: tuple[int | str, ...]):
        self.windows, self._key = windows, key
        self.starts = [0]
        for pieces in windows:
            self.starts.append(self.starts[-1] + sum(piece.stop - piece.start for piece in pieces))

    def covering(self, start: int, stop: int) -> range:
        """The windows that hold the stream's rows from `start` to `stop`."""
        return range(bisect_right(self.starts, start) - 1, bisect_left(self.starts, stop))

    def order(self, window: int) -> Tensor:
        """The shuffled order of a window's rows."""
        rows = self.starts[window + 1] - self.starts[window]
        return torch.randperm(rows, generator=keyed_generator("cpu", *self._key, window))

    def where(self, window: int) -> Tensor:
        """Positions in the split of a window's rows, in stored order."""
        ranges = [torch.arange(start, stop) + group.first for group, start, stop in self.windows[window]]
        return torch.cat(ranges)


class _Window(NamedTuple):
    """A window on the device: pixels as stored (and room), their positions in the split, and the shuffled order."""

    pixels: Tensor
    where: Tensor
    order: Tensor


class Streamed:
    """Batches of images that stay on storage.

    Every epoch puts the row groups into a new order and cuts their rows into equal parts, one for each rank: any
    number of ranks has as many steps as it would have in memory, and reads one row group twice at most. A rank's part
    is cut into windows of consecutive row groups, whose rows are shuffled; a thread fills the next window while this
    one is in use, from row groups that a few others read.

    Args:
        images: the training split.
        batch: images of a step over all ranks.
        world: this rank.
        seed: of the order.
        window: bytes of pixels in a window; never less than one row group.
    """

    def __init__(self, images: StoredSplit, batch: int, world: World, seed: int, window: int = WINDOW_BYTES):
        self._images, self._world, self._seed = images, world, seed
        self._own, self._steps = batch // world.size, len(images) // batch
        self._window_rows = max(1, window // (images.shape[1] * images.shape[2] * images.shape[3]))
        # Windows differ in size: buffers of one size, used again, keep memory from falling into pieces.
        self._room = min(max(self._window_rows, *(group.rows for group in images.groups)), self._steps * self._own)
        self._spare: list[Tensor] = []
        self._plans: dict[int, _Plan] = {}
        self._windows: dict[tuple[int, int], Future[_Window]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="row-groups")

    @property
    def images(self) -> StoredSplit:
        """The split."""
        return self._images

    def batch(self, step: int) -> Batch:
        """The images of a step.

        Raises:
            PipelineError: naming a row group that is missing or damaged.
        """
        epoch, within = divmod(step, self._steps)
        plan, start, stop = self._plan(epoch), within * self._own, (within + 1) * self._own
        parts = []
        for number, window in self._fetch(epoch, plan.covering(start, stop)):
            offset = plan.starts[number]
            rows = window.order[max(start - offset, 0) : stop - offset]
            parts.append(Batch(window.pixels[rows], window.where[rows]))
        if len(parts) == 1:
            return parts[0]
        return Batch(torch.cat([part.pixels for part in parts]), torch.cat([part.where for part in parts]))

    def batch_indices(self, step: int) -> Tensor:
        """Positions in the training split of the images of a step, over all ranks; reads no image."""
        epoch, within = divmod(step, self._steps)
        start, stop = within * self._own, (within + 1) * self._own
        parts = []
        for rank in range(self._world.size):
            plan = self._make_plan(epoch, rank)
            for number in plan.covering(start, stop):
                offset = plan.starts[number]
                parts.append(plan.where(number)[plan.order(number)][max(start - offset, 0) : stop - offset])
        return torch.cat(parts)

    def _make_plan(self, epoch: int, rank: int) -> _Plan:
        groups = self._images.groups
        order = torch.randperm(len(groups), generator=keyed_generator("cpu", self._seed, "row groups", epoch))
        first = rank * (len(self._images) // self._world.size)
        last = first + self._steps * self._own  # what is left over is another part of the images every epoch
        windows: list[list[_Piece]] = []
        at = room = 0
        for number in order.tolist():
            group = groups[number]
            piece = _Piece(group, max(first - at, 0), min(last - at, group.rows))
            at += group.rows
            if (rows := piece.stop - piece.start) <= 0:
                continue
            if rows > room:
                windows.append([])
                room = self._window_rows
            windows[-1].append(piece)
            room -= rows
        return _Plan(windows, (self._seed, "window", epoch, rank))

    def _plan(self, epoch: int) -> _Plan:
        if epoch not in self._plans:
            self._plans = {e: plan for e, plan in self._plans.items() if e == epoch - 1}
            self._plans[epoch] = self._make_plan(epoch, self._world.rank)
        return self._plans[epoch]

    def _fetch(self, epoch: int, numbers: range) -> list[tuple[int, _Window]]:
        """These windows of an epoch, waiting where they are not there yet; the one after them is read ahead."""
        after = (epoch, numbers.stop) if numbers.stop < len(self._plan(epoch).windows) else (epoch + 1, 0)
        wanted = [*((epoch, number) for number in numbers), after]
        for key in [key for key in self._windows if key not in wanted]:
            left = self._windows.pop(key)
            if not left.cancel() and left.done() and left.exception() is None and self._world.device.type == "cpu":
                self._spare.append(left.result().pixels)
        for key in wanted:
            if key not in self._windows:
                self._windows[key] = self._reader.submit(self._read, self._plan(key[0]), key[1])
        return [(number, self._windows[epoch, number].result()) for number in numbers]

    def _read(self, plan: _Plan, number: int) -> _Window:
        device, at = self._world.device, 0
        buffer = self._spare.pop() if self._spare else self._new_buffer()
        into = buffer.numpy()
        pieces = plan.windows[number]
        groups = self._images.read_each(piece.group for piece in pieces)
        for (_, start, stop), (read, _) in zip(pieces, groups, strict=True):
            into[at : at + stop - start] = read[start:stop]
            at += stop - start
        pixels = buffer.to(device)  # waits for the copy, in this thread only
        if pixels is not buffer:
            self._spare.append(buffer)
        return _Window(pixels, plan.where(number).to(device), plan.order(number).to(device))

    def _new_buffer(self) -> Tensor:
        shape = (self._room, *self._images.shape[1:])
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._world.device.type == "cuda")


def window_bytes(memory_mb: int) -> int:
    """Bytes of a window where at most `memory_mb` MiB of images are held.

    Example:
        >>> window_bytes(100) // 2**20, window_bytes(4096) // 2**20, window_bytes(0) // 2**20
        (25, 64, 64)
    """
    return min(WINDOW_BYTES, memory_mb * 2**20 // 4) or WINDOW_BYTES


class StreamedSplit(StoredSplit):
    """A split on storage that brings its own feed, as phase 1 asks of stored images.

    Args:
        run: whose data set it is.
        split: one of `SPLITS`.
        memory_mb: MiB of images that may be held.
    """

    def __init__(self, run: Run, split: str, memory_mb: int):
        super().__init__(run, split)
        self._window = window_bytes(memory_mb)

    def feed(self, batch: int, world: World, seed: int) -> Streamed:
        """Batches of `batch` images over all ranks."""
        return Streamed(self, batch, world, seed, self._window)
