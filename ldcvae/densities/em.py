"""Expectation maximisation of Gaussian mixtures with full covariances, in matrix products on the data's device.

A mixture of a few hundred components is the sampler's base, and its fit to 10⁵ latents is on the way to every sampler
net. scikit-learn's EM goes through the components one by one, on the CPU; this one does the same steps as two matrix
products. The k-means start and the stopping rule are scikit-learn's. Many components in many dimensions take the
steps of `ldcvae.densities.truncated_em`.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ldcvae.densities import truncated_em

__all__ = ["check_rows", "fit_mixture", "start"]

_KMEANS_STEPS = 20  # before truncated steps, which converge faster than k-means does
ROWS = 8192  # at a time: responsibilities of all rows would not fit beside a GPU's other work
BLOCK_BYTES = 144 * 2**20  # of a block's features: all 8,192 rows up to d = 64, fewer where d² makes them wide


def fit_mixture(
    z: Tensor,
    components: int,
    seed: int = 0,
    *,
    variances: Tensor | None = None,
    max_steps: int = 100,
    tolerance: float = 1e-3,
    ridge: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum likelihood of a Gaussian mixture by EM (Dempster, Laird & Rubin 1977), in float64.

    With quadratic features φ(z) = (1, z, zᵢzⱼ for i ≤ j), every component's log joint density is linear in φ, so that
    the E step is one product of (rows, F) by (F, K) and the M step's sufficient statistics are one of (F, rows) by
    (rows, K), with F = 1 + d + d (d + 1) / 2.

    With `variances` a row stands for all draws of a Gaussian with that mean and those variances: its features are
    their expectation, and so its shares maximise the variational bound of the draws' mean log likelihood in which all
    draws of a row have the same shares; it is tight where posteriors are narrow beside the components.

    Args:
        z: (n, d) latents, at least as many as components; of any offset and scale.
        components: the number K of components.
        seed: of the k-means start.
        variances: (n, d) of each row's coordinates, which are independent; None: rows are points.
        max_steps: EM steps at most.
        tolerance: gain of the mean log likelihood, in nats, below which the fit has converged; for d > 16 it is
            d / 16 times as much, since the likelihood itself grows with d.
        ridge: share of the mean variance of z that is added to the variances, at least 1e-10, which keeps the
            covariances of coinciding latents positive definite in float64.

    Returns:
        weights (K,), means (K, d) and covariances (K, d, d), like z.

    Raises:
        ValueError: with fewer rows than components, or variances of another shape.

    Example:
        >>> z = torch.cat([torch.full((50, 1), -3.0), torch.full((150, 1), 3.0)])
        >>> weights, means, covariances = fit_mixture(z, 2)
        >>> sorted(zip(weights.tolist(), means[:, 0].tolist()))
        [(0.25, -3.0), (0.75, 3.0)]
        >>> round(float(fit_mixture(z, 2, variances=torch.ones_like(z))[2][0]), 3)
        1.0
    """
    check_rows(z, components)
    data = z.detach().double()
    if variances is not None and variances.shape != z.shape:
        raise ValueError(f"variances must be {tuple(z.shape)} as the rows are, got {tuple(variances.shape)}")
    d = data.shape[1]
    truncated = truncated_em.pays(d, components)
    labels = start(data, components, seed, _KMEANS_STEPS if truncated else 300)
    centre = data.mean(0)
    data = data - centre
    ridge = max(ridge, 1e-10) * (float(data.square().mean()) or 1.0)
    tolerance *= max(1.0, d / 16)
    totals = data.new_zeros(1 + d + d * (d + 1) // 2, components)
    size = min(ROWS, max(1, BLOCK_BYTES // (8 * len(totals))))
    parts = [data] if variances is None else [data, variances.detach().to(data)]
    blocks = list(zip(*(part.split(size) for part in parts), strict=True))
    if truncated:
        weights, means, covariances = truncated_em.fit_truncated(
            data,
            parts[1] if len(parts) > 1 else None,
            labels,
            lambda now: _likeliest(blocks, _log_joint_coefficients(*now)),
            components=components,
            max_steps=max_steps,
            tolerance=tolerance,
            ridge=ridge,
        )
        return weights.to(z), (means + centre).to(z), covariances.to(z)
    for block, part in zip(blocks, labels.split(size), strict=True):
        totals += _features(*block) @ one_hot(part, components).to(data)
    last = -math.inf
    weights, means, covariances = _parameters(totals, d, ridge)
    for _ in range(max_steps):
        coefficients = _log_joint_coefficients(weights, means, covariances)
        totals, likelihood = torch.zeros_like(totals), data.new_zeros(())
        for block in blocks:
            features = _features(*block)
            log_joint = features.T @ coefficients
            peak = log_joint.amax(1, keepdim=True)
            # Shares below e^-100 are nothing in float64; as denormal numbers they make everything ten times slower.
            shares = log_joint.sub_(peak).clamp_(min=-100.0).exp_()
            sums = shares.sum(1, keepdim=True)
            totals += features @ shares.div_(sums)
            likelihood += (peak + sums.log()).sum()
        weights, means, covariances = _parameters(totals, d, ridge)
        mean = float(likelihood) / len(data)
        gain, last = mean - last, mean
        if abs(gain) < tolerance:
            break
    return weights.to(z), (means + centre).to(z), covariances.to(z)


def check_rows(z: Tensor, components: int) -> None:
    """Raise a ValueError unless latents (n, d) are enough for so many components."""
    if z.ndim != 2 or components < 1 or z.shape[0] < max(2, components):
        raise ValueError(f"fit needs components >= 1 and as many rows, got {components} and {tuple(z.shape)}")


def start(data: Tensor, components: int, seed: int, steps: int = 300) -> Tensor:
    """(n,) labels of rows (n, d) by k-means, with so many steps at most, on their device."""
    from sklearn.cluster import KMeans  # here, because importing it takes a second

    labels = KMeans(components, n_init=1, max_iter=steps, random_state=seed % 2**32).fit(data.cpu().numpy()).labels_
    return torch.from_numpy(labels).long().to(data.device)


def _likeliest(blocks: list[tuple[Tensor, ...]], coefficients: Tensor) -> Tensor:
    """(n, C) numbers of each row's likeliest components: in float32, since which they are needs no more digits."""
    single, width = coefficients.float(), truncated_em.WIDTH
    found = [(_features(*(part.float() for part in block)).T @ single).topk(width, dim=1) for block in blocks]
    return torch.cat([one.indices for one in found])


def _features(rows: Tensor, variances: Tensor | None = None) -> Tensor:
    """(F, n): one, the d coordinates, and their (expected) products for i <= j. In rows: gathering is slow."""
    z = rows.T.contiguous()
    d = len(z)
    features = z.new_ones(1 + d + d * (d + 1) // 2, z.shape[1])
    features[1 : 1 + d] = z
    first = 1 + d
    for i in range(d):  # not z[i] * z[j] with all index pairs, whose gathered copies are as large as the features
        torch.mul(z[i], z[i:], out=features[first : first + d - i])
        if variances is not None:
            features[first] += variances[:, i]
        first += d - i
    return features


def _parameters(totals: Tensor, d: int, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances that the components' summed features (F, K) amount to: the M step."""
    counts = totals[0] + 10 * torch.finfo(totals.dtype).eps
    averages = (totals[1:] / counts).T
    means = averages[:, :d]
    i, j = torch.triu_indices(d, d, device=totals.device)
    upper = totals.new_zeros(len(means), d, d)
    upper[:, i, j] = averages[:, d:]
    second = upper + upper.triu(1).mT
    covariances = second - means[:, :, None] * means[:, None, :]
    covariances.diagonal(dim1=1, dim2=2).add_(ridge)
    return counts / counts.sum(), means, covariances


def _log_joint_coefficients(weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """(F, K): what the features are multiplied by to give `log wₖ + log N(z; mₖ, Cₖ)`."""
    d = means.shape[1]
    factors = torch.linalg.cholesky(covariances)
    precisions = torch.cholesky_inverse(factors)
    linear = torch.einsum("kij,kj->ki", precisions, means)
    log_scale = factors.diagonal(dim1=1, dim2=2).log().sum(1) + 0.5 * d * math.log(2.0 * math.pi)
    constant = weights.log() - log_scale - 0.5 * (linear * means).sum(1)
    i, j = torch.triu_indices(d, d, device=means.device)
    # A product of two coordinates stands once for both of its places in the matrix.
    twice = torch.where(i == j, 0.5, 1.0).to(precisions)
    return torch.cat([constant[:, None], linear, -twice * precisions[:, i, j]], 1).T.contiguous()
