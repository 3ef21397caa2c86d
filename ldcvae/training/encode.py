"""The encodings of a whole split, each rank its part."""

import torch
from torch import Tensor

from ldcvae.batches import Chunks, batches
from ldcvae.encodings import Encodings
from ldcvae.model import LDCVAE
from ldcvae.training.world import World

__all__ = ["encode_split"]

_ALONE = World()
_MOST = 1024  # images per pass


def encode_split(model: LDCVAE, images: Tensor | Chunks, world: World = _ALONE) -> Encodings:
    """Encode a split, each rank its part, gathered so that every rank holds the same encodings of all images.

    Args:
        model: on its device, as are the encodings.
        images: (N, C, H, W) uint8, or the split on storage, of which a few row groups at a time are in memory.
        world: this rank; every rank must call this.
    """
    padded = len(images) + -len(images) % world.size
    rows = world.rows(padded)
    own = [model.encodings(part) for part in batches(images, _MOST, rows.start, min(rows.stop, len(images)))]
    # Parts of one length, or they could not be gathered; what pads them is cut off.
    blank = torch.zeros(padded // world.size - sum(map(len, own)), model.config.latent_dim, device=model.device)
    mean = world.gather(torch.cat([*(part.mean for part in own), blank]))
    log_variance = world.gather(torch.cat([*(part.log_variance for part in own), blank]))
    return Encodings(mean[: len(images)], log_variance[: len(images)])
