"""Where phase 1 gets its batches: from images in memory, or from row groups that stream from storage.

Both say which images make up any step without having taken the steps before, so that training can go on anywhere.
"""

from bisect import bisect_left, bisect_right
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.store.data.stored import RowGroup, StoredSplit
from ldcvae.training.world import World, keyed_generator

__all__ = ["WINDOW_BYTES", "Batch", "InMemory", "Streamed", "make_feed", "window_bytes"]

WINDOW_BYTES = 64 * 2**20
"""Pixels that streaming shuffles at a time; three such windows are in memory at most."""


class Batch(NamedTuple):
    """This rank's images of a step, on its device.

    Attributes:
        pixels: (n, C, H, W) uint8.
        where: (n,) their positions in the training split.
    """

    pixels: Tensor
    where: Tensor


class InMemory:
    """Batches of images that are held on the device; the order is the same for any number of ranks.

    Args:
        pixels: (N, C, H, W) uint8, the same on all ranks; moved to the device once.
        batch: images of a step over all ranks.
        world: this rank.
        seed: of the order.

    Attributes:
        images: the pixels on the device.
    """

    def __init__(self, pixels: Tensor, batch: int, world: World, seed: int):
        self.images, self._batch, self._world, self._seed = pixels.to(world.device), batch, world, seed
        self._steps = len(pixels) // batch
        self._order: tuple[int, Tensor] | None = None  # of the current epoch, on the device

    def batch(self, step: int) -> Batch:
        """The images of a step."""
        epoch, within = divmod(step, self._steps)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._permutation(epoch).to(self._world.device)
        index = self._order[1][within * self._batch : (within + 1) * self._batch][self._world.rows(self._batch)]
        return Batch(self.images[index], index)

    def batch_indices(self, step: int) -> Tensor:
        """Positions in the training split of the images of a step, over all ranks."""
        epoch, within = divmod(step, self._steps)
        return self._permutation(epoch)[within * self._batch : (within + 1) * self._batch]

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.images), generator=keyed_generator("cpu", self._seed, "order", epoch))


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
    is cut into windows of consecutive row groups, whose rows are shuffled; a thread reads the next window while this
    one is in use.

    Args:
        images: the training split.
        batch: images of a step over all ranks.
        world: this rank.
        seed: of the order.
        window: bytes of pixels in a window; never less than one row group.

    Attributes:
        images: as given.
    """

    def __init__(self, images: StoredSplit, batch: int, world: World, seed: int, window: int = WINDOW_BYTES):
        self.images, self._world, self._seed = images, world, seed
        self._own, self._steps = batch // world.size, len(images) // batch
        self._window_rows = max(1, window // (images.shape[1] * images.shape[2] * images.shape[3]))
        # Windows differ in size: buffers of one size, used again, keep memory from falling into pieces.
        self._room = min(max(self._window_rows, *(group.rows for group in images.groups)), self._steps * self._own)
        self._spare: list[Tensor] = []
        self._plans: dict[int, _Plan] = {}
        self._windows: dict[tuple[int, int], Future[_Window]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="row-groups")

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
        groups = self.images.groups
        order = torch.randperm(len(groups), generator=keyed_generator("cpu", self._seed, "row groups", epoch))
        first = rank * (len(self.images) // self._world.size)
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
        for group, start, stop in plan.windows[number]:
            into[at : at + stop - start] = self.images.read(group)[0][start:stop]
            at += stop - start
        pixels = buffer.to(device)  # waits for the copy, in this thread only
        if pixels is not buffer:
            self._spare.append(buffer)
        return _Window(pixels, plan.where(number).to(device), plan.order(number).to(device))

    def _new_buffer(self) -> Tensor:
        shape = (self._room, *self.images.shape[1:])
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._world.device.type == "cuda")


def window_bytes(memory_mb: int) -> int:
    """Bytes of a window where at most `memory_mb` MiB of images are held.

    Example:
        >>> window_bytes(100) // 2**20, window_bytes(4096) // 2**20, window_bytes(0) // 2**20
        (25, 64, 64)
    """
    return min(WINDOW_BYTES, memory_mb * 2**20 // 4) or WINDOW_BYTES


def make_feed(
    images: Tensor | StoredSplit, batch: int, world: World, seed: int, memory_mb: int
) -> InMemory | Streamed:
    """The feed that suits the images: see `InMemory` and `Streamed`."""
    if isinstance(images, StoredSplit):
        return Streamed(images, batch, world, seed, window_bytes(memory_mb))
    return InMemory(images, batch, world, seed)
