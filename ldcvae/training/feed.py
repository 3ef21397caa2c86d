"""Where phase 1 gets its batches, and what it asks of images that lie elsewhere.

A feed says which images make up any step without having taken the steps before, so that training can go on anywhere.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ldcvae.batches import Chunks
from ldcvae.training.world import World, keyed_generator

__all__ = ["Batch", "Feed", "InMemory", "StoredImages", "make_feed"]


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


class Feed(Protocol):
    """Batches of a training split."""

    @property
    def images(self) -> Tensor | Chunks:
        """The split, on this rank's device where it is held in memory."""

    def batch(self, step: int) -> Batch:
        """The images of a step."""

    def batch_indices(self, step: int) -> Tensor:
        """Positions in the training split of the images of a step, over all ranks."""


class StoredImages(Chunks, Protocol):
    """A training split on storage, which brings its own feed."""

    def feed(self, batch: int, world: World, seed: int) -> Feed:
        """Batches of `batch` images each, over all ranks."""


def make_feed(images: Tensor | StoredImages, batch: int, world: World, seed: int) -> Feed:
    """The feed of images in memory, or what stored images bring themselves.

    Example:
        >>> feed = make_feed(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), 2, World(), seed=0)
        >>> feed.batch(0).pixels.shape
        torch.Size([2, 1, 8, 8])
    """
    return InMemory(images, batch, world, seed) if isinstance(images, Tensor) else images.feed(batch, world, seed)
