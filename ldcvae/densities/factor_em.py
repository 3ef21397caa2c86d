"""Expectation maximisation of Gaussian mixtures with diagonal or diagonal plus low-rank covariances.

For many dimensions: no (d, d) matrix is ever formed. Of a component, the diagonal of its covariance and the product
with r directions are summed over the rows. Full covariances are in `ldcvae.densities.em`, whose start and stopping
rule these share.
"""

import math

import torch
from torch import Tensor

from ldcvae.densities import em

__all__ = ["fit_factor_mixture"]

BLOCK_BYTES = 16 * 2**20  # of a block and what is computed from it; larger ones are slower, as no cache holds them
_KMEANS_STEPS = 20  # where there are no clusters to find, k-means takes hundreds, and longer than EM
_START_STEPS = 3  # with the labels of k-means, until the directions are those of the clusters


def fit_factor_mixture(
    z: Tensor,
    components: int,
    rank: int,
    seed: int = 0,
    *,
    max_steps: int = 100,
    tolerance: float = 1e-3,
    ridge: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maximum likelihood of a mixture of factor analysers, `Σₖ wₖ N(mₖ, Λₖ Λₖᵀ + Ψₖ)`, in float64; rank 0: diagonal.

    The E step is that of Ghahramani & Hinton, with the Woodbury identity in place of inverses. In the M step the mean
    is the weighted one, and the factors make one step of EM for factor analysis (Rubin & Thayer) with expanded
    parameters (Liu, Rubin & Wu), whose convergence does not slow down where factors explain most of the variance.
    With the component's weighted covariance S, the directions P = Ψ⁻¹ Λ L⁻ᵀ, L Lᵀ = I + Λᵀ Ψ⁻¹ Λ, and M = I + Pᵀ S P,
    it is

        Λ Λᵀ ← S P M⁻¹ Pᵀ S,   Ψ ← diag(S - Λ Λᵀ) + ridge,

    for which S P, in one pass over the rows, and the diagonal of S suffice. The likelihood never falls, and every
    component's variances are those of its rows after every step. The start is k-means and random directions.

    Args:
        z: (n, d) latents, at least as many as components; of any offset and scale.
        components: K.
        rank: r, below d (1 for d = 1, too); 0 for diagonal covariances.
        seed: of k-means and of the directions.
        max_steps: EM steps at most.
        tolerance: gain of the mean log likelihood below which the fit has converged, in nats; for d > 16 it is
            d / 16 times as much, since the likelihood itself grows with d.
        ridge: share of the mean variance that is added to the variances, as in `ldcvae.densities.em.fit_mixture`.

    Returns:
        weights (K,), means (K, d), factors Λ (K, d, r) and variances Ψ (K, d), like z.

    Raises:
        ValueError: with fewer rows than components, or a rank out of range.

    References:
        Ghahramani & Hinton 1996, The EM algorithm for mixtures of factor analyzers (CRG-TR-96-1).
        Rubin & Thayer 1982, EM algorithms for ML factor analysis (Psychometrika 47).
        Liu, Rubin & Wu 1998, Parameter expansion to accelerate EM: the PX-EM algorithm (Biometrika 85).

    Example:
        >>> z = torch.cat([torch.full((50, 3), -3.0), torch.full((150, 3), 3.0)])
        >>> weights, means, factors, variances = fit_factor_mixture(z, 2, rank=1)
        >>> sorted(zip(weights.tolist(), means[:, 0].tolist()))
        [(0.25, -3.0), (0.75, 3.0)]
    """
    em.check_rows(z, components)
    if not 0 <= rank < max(2, z.shape[1]):
        raise ValueError(f"rank must lie in 0 .. {max(1, z.shape[1] - 1)} for d = {z.shape[1]}, got {rank}")
    data = z.detach()  # blocks of it are made float64: as a whole it may be large
    labels = em.start(data, components, seed, _KMEANS_STEPS)
    centre = data.mean(0, dtype=torch.float64)
    mean_square = sum(float((rows.double() - centre).square().sum()) for rows in data.split(em.ROWS)) / data.numel()
    ridge = max(ridge, 1e-10) * (mean_square or 1.0)
    tolerance *= max(1.0, data.shape[1] / 16)
    noise = torch.randn(components, data.shape[1], rank, generator=torch.Generator().manual_seed(seed)).double()
    # Long, so that they span what S does to them: at that, I in M is nothing.
    step = _Step(data, centre, components, ridge, 1e3 * noise.to(z.device) / math.sqrt(max(mean_square, ridge)))
    for _ in range(1 if rank == 0 else _START_STEPS):
        step.advance(labels)
    last = -math.inf
    for _ in range(max_steps):
        mean = step.advance()
        gain, last = mean - last, mean
        if abs(gain) < tolerance:
            break
    return step.weights.to(z), (step.means + centre).to(z), step.factors.to(z), step.variances.to(z)


class _Step:
    """The parameters, and how one pass over the rows makes them better."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, d), relative to the centre
    factors: Tensor  # (K, d, r)
    variances: Tensor  # (K, d)

    def __init__(self, data: Tensor, centre: Tensor, components: int, ridge: float, directions: Tensor):
        self.data, self.centre, self.ridge = data, centre, ridge
        self.directions = directions  # (K, d, r): P
        d, rank = directions.shape[1:]
        # In a block: the rows, their squares and one thing more of their size, and two of (rows, K, r + 1).
        numbers = 3 * d + 2 * components * (rank + 1)
        self.rows = min(em.ROWS, max(1, BLOCK_BYTES // (8 * numbers)))

    def advance(self, labels: Tensor | None = None) -> float:
        """One step of EM; with labels (n,) in place of responsibilities. The mean log likelihood before it."""
        (k, d, rank), n = self.directions.shape, len(self.data)
        flat = self.directions.transpose(0, 1).reshape(d, k * rank)
        sums = flat.new_zeros(2 * d, k)
        products = flat.new_zeros(d, k * rank)  # Σ h z (z - m)ᵀ P, for m = 0
        counts, likelihood = flat.new_zeros(k), flat.new_zeros(())
        joint = self._log_joint_coefficients() if labels is None else None
        for start in range(0, n, self.rows):
            z = self.data[start : start + self.rows].double() - self.centre
            features = torch.cat([z, z * z], 1)
            projected = (z @ flat).view(len(z), k, rank)
            if joint is None:
                assert labels is not None
                shares = torch.nn.functional.one_hot(labels[start : start + self.rows], k).double()
            else:
                coefficients, constants, offsets = joint
                log_joint = torch.addmm(constants, features, coefficients)
                if rank:
                    log_joint += 0.5 * (projected - offsets).square_().sum(2)
                peak = log_joint.amax(1, keepdim=True)
                shares = log_joint.sub_(peak).clamp_(min=-100.0).exp_()  # as in `em`
                total = shares.sum(1, keepdim=True)
                likelihood += (peak + total.log()).sum()
                shares /= total
            counts += shares.sum(0)
            sums += features.T @ shares
            products += z.T @ projected.mul_(shares[:, :, None]).view(len(z), k * rank)
        self._maximise(counts, (sums / (counts + _EPSILON)).T, products.view(d, k, rank).transpose(0, 1))
        return float(likelihood) / n

    def _maximise(self, counts: Tensor, averages: Tensor, products: Tensor) -> None:
        """The M step, and the directions that belong to its result."""
        counts = counts + _EPSILON
        d = averages.shape[1] // 2
        self.weights, self.means = counts / counts.sum(), averages[:, :d]
        spread = averages[:, d:] - self.means.square()  # the diagonal of S
        images = products / counts[:, None, None]
        images = images - self.means[:, :, None] * (self.means[:, None] @ self.directions)  # S P, (K, d, r)
        eye = torch.eye(images.shape[2]).to(images)
        inner = self.directions.mT @ images
        root = torch.linalg.cholesky(eye + 0.5 * (inner + inner.mT))
        self.factors = torch.linalg.solve_triangular(root, images.mT, upper=False).mT
        self.variances = (spread - self.factors.square().sum(2)).clamp(min=0.0) + self.ridge
        # P for the next step.
        scaled = self.factors / self.variances[:, :, None]
        self.root = torch.linalg.cholesky(eye + self.factors.mT @ scaled)
        self.directions = torch.linalg.solve_triangular(self.root, scaled.mT, upper=False).mT

    def _log_joint_coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """(2d, K) factors of the features (z, z²), (K,) constants and (K, r) offsets of the projections.

        With them `log wₖ + log N(z; mₖ, Cₖ) = (z, z²) · factors + constants + ½ |Pᵀ z - offsets|²`.
        """
        precisions = 1.0 / self.variances
        linear = self.means * precisions
        log_det = self.variances.log().sum(1) + 2.0 * self.root.diagonal(dim1=1, dim2=2).log().sum(1)
        d = self.means.shape[1]
        constants = self.weights.log() - 0.5 * (log_det + d * math.log(2.0 * math.pi) + (linear * self.means).sum(1))
        offsets = (self.means[:, None] @ self.directions)[:, 0]
        return torch.cat([linear, -0.5 * precisions], 1).T.contiguous(), constants, offsets


_EPSILON = 10 * torch.finfo(torch.float64).eps  # in the counts, as scikit-learn has it
