"""The training split, in memory where it fits and else as it lies on storage, and what every stage does with it."""

import torch
from torch import Tensor

from ldcvae.encodings import Encodings
from ldcvae.model import LDCVAE
from pipeline.store.data.shards import Images, load_split, read_dataset_manifest
from pipeline.store.data.stream import WINDOW_BYTES
from pipeline.store.data.stored import StoredSplit
from pipeline.store.folder import Folder
from ldcvae.training.world import World, keyed_generator

__all__ = ["encode_split", "labelled_images", "some_images", "training_images"]

_ALONE = World()


def _streams(run: Folder, memory_mb: int) -> bool:
    info = read_dataset_manifest(run).info
    size = info["counts"].get("train", 0)
    for side in info["shape"]:
        size *= side
    return bool(size > memory_mb * 2**20)


def training_images(run: Folder, memory_mb: int) -> Tensor | StoredSplit:
    """The training images: (N, C, H, W) uint8, or the split on storage if they take more than `memory_mb` MiB.

    Raises:
        PipelineError: if `prepare` has not finished, or images are missing or damaged.
    """
    return StoredSplit(run, "train") if _streams(run, memory_mb) else load_split(run, "train").pixels


def labelled_images(run: Folder, memory_mb: int, *key: int | str) -> Images:
    """Training images and labels in memory: all of them, or a random `memory_mb` MiB, fixed by `key`.

    Where nothing is to be held in memory (0), as many as a window of streaming has.
    """
    if not _streams(run, memory_mb):
        return load_split(run, "train")
    stored = StoredSplit(run, "train")
    _, channels, height, width = stored.shape
    return stored.some(max(1, (memory_mb * 2**20 or WINDOW_BYTES) // (channels * height * width)), *key)


def some_images(images: Tensor | StoredSplit, count: int, *key: int | str) -> Tensor:
    """(count, C, H, W) images in random order, fixed by `key`; all, if there are fewer."""
    if isinstance(images, StoredSplit):
        return images.some(count, *key).pixels
    return images[torch.randperm(len(images), generator=keyed_generator("cpu", *key))[:count]]


def encode_split(model: LDCVAE, images: Tensor | StoredSplit, world: World = _ALONE) -> Encodings:
    """Encode a split, each rank its part, gathered so that every rank holds the same encodings of all images.

    Args:
        model: on its device, as are the encodings.
        images: (N, C, H, W) uint8, or the split on storage; of that a row group at a time is in memory.
        world: this rank; every rank must call this.
    """
    padded = len(images) + -len(images) % world.size
    rows = world.rows(padded)
    stop = min(rows.stop, len(images))
    chunks = images.chunks(rows.start, stop) if isinstance(images, StoredSplit) else [images[rows.start : stop]]
    own = [model.encodings(chunk) for chunk in chunks if len(chunk)]
    # Parts of one length, or they could not be gathered; what pads them is cut off.
    blank = torch.zeros(padded // world.size - sum(map(len, own)), model.config.latent_dim, device=model.device)
    mean = world.gather(torch.cat([*(part.mean for part in own), blank]))
    log_variance = world.gather(torch.cat([*(part.log_variance for part in own), blank]))
    return Encodings(mean[: len(images)], log_variance[: len(images)])
