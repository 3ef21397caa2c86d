"""Figures of merit: of images by their features, of latents, of particles against their target."""

from ldcvae.metrics.diagnostics import kernel_stein_discrepancy, stein_ratio, variance_ratio
from ldcvae.metrics.images import KID, frechet_distance, kid
from ldcvae.metrics.latents import mmd2, nearest_distance, sliced_wasserstein
from ldcvae.metrics.neighbours import PRDC, prdc

__all__ = [
    "KID",
    "PRDC",
    "frechet_distance",
    "kernel_stein_discrepancy",
    "kid",
    "mmd2",
    "nearest_distance",
    "prdc",
    "sliced_wasserstein",
    "stein_ratio",
    "variance_ratio",
]
