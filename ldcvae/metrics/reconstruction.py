"""How well an autoencoder gives back what it is given."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from ldcvae.batches import Chunks, batches
from ldcvae.losses import as_float

__all__ = ["reconstruction_error"]

_MOST = 1000  # images per pass


@torch.no_grad()
def reconstruction_error(
    reconstruct: Callable[[Tensor], Tensor],
    pixels: Tensor | Chunks,
    device: torch.device | None = None,
    see: Callable[[Tensor], None] | None = None,
) -> float:
    """Mean squared error per pixel of reconstructed images.

    Args:
        reconstruct: (n, C, H, W) in [0, 1] to as many.
        pixels: (N, C, H, W), uint8 or float in [0, 1], or a split on storage.
        device: where `reconstruct` wants them; None: where they are.
        see: takes every part's reconstructions, (n, C, H, W) in [0, 1].

    Example:
        >>> reconstruction_error(torch.zeros_like, torch.full((3, 1, 2, 2), 0.5))
        0.25
    """
    total = 0.0
    for part in batches(pixels, _MOST):
        images = as_float(part.to(device))
        decoded = reconstruct(images)
        total += float((decoded - images).square().sum())
        if see is not None:
            see(decoded)
    return total / prod(pixels.shape)
