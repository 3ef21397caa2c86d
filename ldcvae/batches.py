"""Many images a part at a time, wherever they lie."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Chunks", "batches", "rows_at_a_time"]

_NUMBERS = 2**22  # of a part of images: what a network makes of them on the way is many times as large


class Chunks(Protocol):
    """A split that is not held in memory, and is read a part at a time."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""

    def __len__(self) -> int: ...

    def chunks(self, start: int, stop: int) -> Iterator[Tensor]:
        """The images from `start` to `stop` in the split's order, uint8."""


def rows_at_a_time(shape: Sequence[int], most: int) -> int:
    """How many (C, H, W) images pass through a network at a time: `most`, and of large ones fewer.

    Example:
        >>> rows_at_a_time((1, 28, 28), 1000), rows_at_a_time((3, 256, 256), 1000)
        (1000, 21)
    """
    return max(1, min(most, _NUMBERS // prod(shape)))


def batches(images: Tensor | Chunks, most: int, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
    """Images in their order, in parts of `rows_at_a_time`: the same parts wherever the images lie.

    Args:
        images: (N, C, H, W), or a split on storage.
        most: images of a part.
        start: position of the first image.
        stop: position after the last; None for all.

    Example:
        >>> [len(part) for part in batches(torch.zeros(5, 1, 8, 8), 2)]
        [2, 2, 1]
    """
    stop, size = len(images) if stop is None else stop, rows_at_a_time(images.shape[1:], most)
    if isinstance(images, Tensor):
        for first in range(start, stop, size):
            yield images[first : min(first + size, stop)]
        return
    held: list[Tensor] = []
    room = size
    for chunk in images.chunks(start, stop):
        rest = chunk
        while len(rest):
            held.append(rest[:room])
            rest, room = rest[room:], room - len(held[-1])
            if room == 0:
                yield torch.cat(held)
                held, room = [], size
    if held:
        yield torch.cat(held)
