"""A split, in memory where it fits and else as it lies on storage."""

import torch
from torch import Tensor

from ldcvae.training.world import keyed_generator
from pipeline.store.data.shards import Images, load_split
from pipeline.store.data.stored import PickedImages, StoredSplit
from pipeline.store.data.stream import WINDOW_BYTES, StreamedSplit
from pipeline.store.run import Run

__all__ = ["labelled_images", "some_images", "spaced_images", "split_images"]


def _streams(run: Run, split: str) -> bool:
    size = run.data.info["counts"].get(split, 0)
    for side in run.shape:
        size *= side
    return bool(size > run.config.train.memory_mb * 2**20)


def split_images(run: Run, split: str) -> Tensor | StreamedSplit:
    """A split's images: (N, C, H, W) uint8, or the split on storage if it takes more than `train.memory_mb` MiB.

    Raises:
        PipelineError: if `prepare` has not finished, the split is empty, or images are missing or damaged.
    """
    if _streams(run, split):
        return StreamedSplit(run, split, run.config.train.memory_mb)
    return load_split(run, split).pixels


def labelled_images(run: Run, *key: int | str) -> Images:
    """Training images and labels in memory: all of them, or a random `train.memory_mb` MiB, fixed by `key`.

    Where nothing is to be held in memory (0), as many as a window of streaming has.
    """
    if not _streams(run, "train"):
        return load_split(run, "train")
    stored = StoredSplit(run, "train")
    _, channels, height, width = stored.shape
    room = run.config.train.memory_mb * 2**20 or WINDOW_BYTES
    return stored.choose(max(1, room // (channels * height * width)), *key).load()


def some_images(images: Tensor | StoredSplit, count: int, *key: int | str) -> Tensor | StoredSplit:
    """`count` images in random order, fixed by `key`; all, if there are fewer. Of stored ones none is read yet."""
    if isinstance(images, StoredSplit):
        return images.choose(count, *key)
    return images[torch.randperm(len(images), generator=keyed_generator("cpu", *key))[:count]]


def spaced_images(images: Tensor | StoredSplit | PickedImages, count: int) -> Tensor | PickedImages:
    """`count` images evenly spaced through a split, all if there are fewer. Of stored ones none is read yet."""
    where = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    return images[where] if isinstance(images, Tensor) else images.pick(where)
