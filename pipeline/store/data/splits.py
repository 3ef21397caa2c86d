"""The training split, in memory where it fits and else as it lies on storage."""

import torch
from torch import Tensor

from ldcvae.training.world import keyed_generator
from pipeline.store.data.shards import Images, load_split
from pipeline.store.data.stored import StoredSplit
from pipeline.store.data.stream import WINDOW_BYTES, StreamedSplit
from pipeline.store.run import Run

__all__ = ["labelled_images", "some_images", "training_images"]


def _streams(run: Run) -> bool:
    size = run.data.info["counts"].get("train", 0)
    for side in run.shape:
        size *= side
    return bool(size > run.config.train.memory_mb * 2**20)


def training_images(run: Run) -> Tensor | StreamedSplit:
    """The training images: (N, C, H, W) uint8, or the split on storage if it takes more than `train.memory_mb` MiB.

    Raises:
        PipelineError: if `prepare` has not finished, or images are missing or damaged.
    """
    if _streams(run):
        return StreamedSplit(run, "train", run.config.train.memory_mb)
    return load_split(run, "train").pixels


def labelled_images(run: Run, *key: int | str) -> Images:
    """Training images and labels in memory: all of them, or a random `train.memory_mb` MiB, fixed by `key`.

    Where nothing is to be held in memory (0), as many as a window of streaming has.
    """
    if not _streams(run):
        return load_split(run, "train")
    stored = StoredSplit(run, "train")
    _, channels, height, width = stored.shape
    room = run.config.train.memory_mb * 2**20 or WINDOW_BYTES
    return stored.some(max(1, room // (channels * height * width)), *key)


def some_images(images: Tensor | StoredSplit, count: int, *key: int | str) -> Tensor:
    """(count, C, H, W) images in random order, fixed by `key`; all, if there are fewer."""
    if isinstance(images, StoredSplit):
        return images.some(count, *key).pixels
    return images[torch.randperm(len(images), generator=keyed_generator("cpu", *key))[:count]]
