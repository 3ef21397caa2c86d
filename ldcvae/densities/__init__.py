"""Latent densities in Gibbs form, `energy(z)` and `score(z)`, how they are fitted, and chains that walk on them."""

from ldcvae.densities.gaussian import Gaussian, GaussianMixture, LatentDensity, StandardNormal
from ldcvae.densities.kernel_mixture import KernelMixture
from ldcvae.densities.low_rank import LowRankMixture, fit_gaussians
from ldcvae.densities.mcmc import hmc, langevin

__all__ = [
    "Gaussian",
    "GaussianMixture",
    "KernelMixture",
    "LatentDensity",
    "LowRankMixture",
    "StandardNormal",
    "fit_gaussians",
    "hmc",
    "langevin",
]
