"""What images cost: reconstruction loss, KL and the terms of the evidence bound."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ldcvae.encodings import Posterior

__all__ = [
    "LEAST_LOG_VARIANCE",
    "MOST_LOG_VARIANCE",
    "LogDensity",
    "as_float",
    "gaussian_kl",
    "reconstruction_loss",
    "split_posterior",
]


LEAST_LOG_VARIANCE = -16.0
"""The least that a posterior may have, and what stands for a point, the posterior of a deterministic encoder."""
MOST_LOG_VARIANCE = 8.0
"""The most that one may have: beyond it an encoder that has lost its way would overflow."""


def as_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]; float images as they are."""
    return images.float().div_(255.0) if images.dtype == torch.uint8 else images


class LogDensity(NamedTuple):
    """Terms of the evidence bound of each image, in nats up to the Gibbs normaliser.

    Attributes:
        reconstruction: (B,) l(x, z), summed over pixels.
        kl: (B,) KL of the encoder's posterior from N(0, I).
        elbo: (B,) `-lambda · reconstruction - kl`.
    """

    reconstruction: Tensor
    kl: Tensor
    elbo: Tensor


def reconstruction_loss(logits: Tensor, images: Tensor, likelihood: str) -> Tensor:
    """l(x, z) of each image, summed over its pixels.

    Args:
        logits: (B, C, H, W) or (B, M, C, H, W) decoder output before the sigmoid.
        images: broadcastable to it, in [0, 1].
        likelihood: gaussian or bernoulli.

    Returns:
        (B,) or (B, M).

    Raises:
        ValueError: for another likelihood.

    Example:
        >>> reconstruction_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "gaussian")  # 4 · 0.5²
        tensor([1.])
    """
    images = images.expand_as(logits)
    if likelihood == "gaussian":
        pixelwise = functional.mse_loss(torch.sigmoid(logits), images, reduction="none")
    elif likelihood != "bernoulli":
        raise ValueError(f"unknown likelihood {likelihood!r}: choose gaussian or bernoulli")
    else:
        pixelwise = functional.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return pixelwise.flatten(-3).sum(-1)


def gaussian_kl(posterior: Posterior) -> Tensor:
    """(B,) KL(q(z | x) || N(0, I)) in nats.

    Example:
        >>> gaussian_kl(Posterior(torch.zeros(1, 3), torch.zeros(1, 3)))
        tensor([0.])
    """
    mean, log_variance = posterior
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)


def split_posterior(output: Tensor) -> Posterior:
    """Encoder output (B, 2d) -> posterior, in float32, the log variance kept where exp() is safe."""
    mean, log_variance = output.float().chunk(2, dim=1)
    return Posterior(mean, log_variance.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE))
