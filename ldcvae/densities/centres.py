"""Centres within a mixture's components: more places at the price of no covariance.

A component in 64 dimensions needs a hundred images or more for its covariance, and its draws fill the ellipsoid
between them, farther from any image than an unseen one is. Centres of a few images each, which share the covariance
of their component, put the draws where images are (docs/experiments.md).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ldcvae.densities.em import start
from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.exponentials import softmax_or_zero

__all__ = ["LEAST_ROWS", "Centres", "split_components"]

LEAST_ROWS = 4
"""Images that a centre has at least: it is to be a place, and not an image."""
_EM_STEPS = 15
_KMEANS_STEPS = 20
_RIDGE = 1e-6  # in whitened coordinates, where variances are about 1


class Centres(NamedTuple):
    """A mixture of K components with m centres each.

    Attributes:
        weights: (K·m,) of the centres, those of a component one after the other; 0 where it has fewer.
        means: (K·m, d).
        covariances: (K, d, d), of all of a component's centres.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor


def split_components(
    mixture: GaussianMixture, means: Tensor, variances: Tensor, matrix: Tensor, count: int, seed: int = 0
) -> Centres:
    """Centres of every component by EM with one covariance a component, on the posteriors that are likeliest its own.

    Args:
        mixture: of K components.
        means: (n, d) of the posteriors, in the mixture's coordinates.
        variances: (n, d) of the posteriors, in the coordinates of the latents.
        matrix: (d, d) of the whitening: a posterior's covariance in the mixture's coordinates is `Wᵀ diag(v) W`.
        count: m, centres a component; fewer where it has not `LEAST_ROWS` posteriors for each.
        seed: of the k-means start.

    Example:
        >>> one = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1))
        >>> means = torch.tensor([[-1.0], [1.0]]).repeat(20, 1)
        >>> found = split_components(one, means, torch.full((40, 1), 0.01), torch.eye(1), 2)
        >>> sorted(found.means[:, 0].tolist()), found.weights.tolist(), round(float(found.covariances), 3)
        ([-1.0, 1.0], [0.5, 0.5], 0.01)
    """
    k, d = mixture.means.shape
    w = matrix.double()
    # By the expected log density, as EM has it: a wide posterior is not a narrow component's, wherever its mean is.
    precisions = torch.linalg.inv(mixture.covariances.double())
    widths = variances @ (w @ precisions).mul_(w).sum(2).to(variances).T  # tr C⁻¹ Wᵀ diag(v) W
    labels = mixture.log_joint(means).sub_(0.5 * widths).argmax(1)
    weights = means.new_zeros(k, count)
    centres = mixture.means[:, None].repeat(1, count, 1)
    covariances = mixture.covariances.clone()
    for i in range(k):
        own = labels == i
        x = means[own].double()
        if len(x) < 2 * LEAST_ROWS:
            weights[i, 0] = len(x) / len(means)
            continue
        noise = w.T @ (variances[own].double().mean(0)[:, None] * w)
        noise.diagonal().add_(_RIDGE)
        found, sizes, covariance = _with_one_covariance(x, noise, min(count, len(x) // LEAST_ROWS), seed)
        weights[i, : len(sizes)] = (sizes / len(means)).to(weights)
        centres[i, : len(sizes)] = found.to(centres)
        covariances[i] = covariance.to(covariances)
    return Centres(weights.flatten(), centres.reshape(-1, d), covariances)


def _with_one_covariance(x: Tensor, noise: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(m, d) centres of rows (n, d), (m,) rows that each has, the covariance (d, d) about them with the noise."""
    scatter = x.T @ x
    whole = torch.linalg.cholesky(torch.cov(x.T, correction=0).reshape(noise.shape) + noise)
    labels = start(_solved(whole, x), count, seed, _KMEANS_STEPS)
    shares = torch.nn.functional.one_hot(labels, count).to(x)
    step = 0
    while True:
        step += 1
        sizes = shares.sum(0) + 1e-9
        centres = (shares.T @ x) / sizes[:, None]
        covariance = (scatter - centres.T @ (sizes[:, None] * centres)) / len(x) + noise
        # Few at first, so that rows of a centre that goes make its neighbours large enough.
        least = LEAST_ROWS * min(1.0, step / _EM_STEPS)
        kept = (sizes >= least) | (sizes == sizes.max())
        if step >= _EM_STEPS and bool(kept.all()):
            return centres, sizes, 0.5 * (covariance + covariance.T)
        factor = torch.linalg.cholesky(covariance)
        squares = torch.cdist(_solved(factor, x), _solved(factor, centres[kept])).square()
        shares = softmax_or_zero(sizes[kept].log() - 0.5 * squares)


def _solved(factor: Tensor, rows: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, rows.T, upper=False).T
