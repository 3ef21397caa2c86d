"""Gaussian mixtures whose covariances are a diagonal plus a few factors, for dimensions where full ones do not fit.

No (d, d) matrix is formed, neither to fit nor to evaluate nor to draw. `fit_gaussians` fits a mixture with the kind
of covariances that suits its dimension and number of components.
"""

from collections.abc import Iterator
from typing import Literal, Self

import torch
from torch import Tensor

from ldcvae.densities.covariances import KINDS, choose_covariances
from ldcvae.densities.factor_em import fit_factor_mixture
from ldcvae.densities.gaussian import LOG_2PI, GaussianMixture, LatentDensity, checked_sigma
from ldcvae.densities.noise import drawn_components, scaled_noise, standard_noise
from ldcvae.exponentials import softmax_or_zero

__all__ = ["LowRankMixture", "fit_gaussians"]

_CHUNK_NUMBERS = 2**22  # of the latents less every component's mean (K, n, d) held at one time


class LowRankMixture(LatentDensity):
    """A mixture of factor analysers, `E(z) = -log Σₖ wₖ N(z; mₖ, Λₖ Λₖᵀ + diag(ψₖ))`; diagonal for rank 0.

    By the Woodbury identity, with A = I + Λᵀ Ψ⁻¹ Λ and the factors' expectation x = A⁻¹ Λᵀ Ψ⁻¹ (z - m), the quadratic
    form is `(z - m - Λ x)ᵀ Ψ⁻¹ (z - m - Λ x) + |x|²`, a sum of what is positive, where nothing cancels in float32.

    Args:
        weights: (K,) non-negative weights; they are normalised to sum to one.
        means: (K, d) component means.
        factors: (K, d, r) factors Λ; r = 0 for diagonal covariances.
        variances: (K, d) positive variances ψ beside them.

    Raises:
        ValueError: on shapes that do not fit, negative weights, or variances that are not positive.

    References:
        Ghahramani & Hinton 1996, The EM algorithm for mixtures of factor analyzers (CRG-TR-96-1).

    Example:
        >>> density = LowRankMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2, 1), torch.ones(1, 2))
        >>> density.score(torch.tensor([[3.0, 0.0]]))  # the covariance is [[2, 1], [1, 2]]
        tensor([[-2.,  1.]])
    """

    def __init__(self, weights: Tensor, means: Tensor, factors: Tensor, variances: Tensor):
        k, d = means.shape if means.ndim == 2 else (0, 0)
        if k == 0 or weights.shape != (k,) or variances.shape != (k, d) or factors.shape[:-1] != (k, d):
            raise ValueError(
                "expected weights (K,), means (K, d), factors (K, d, r) and variances (K, d), got "
                f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(factors.shape)} and {tuple(variances.shape)}"
            )
        if bool((weights < 0).any()) or not 0.0 < float(weights.sum()) < float("inf"):
            raise ValueError(f"weights must be >= 0 with a positive sum, got {weights.tolist()}")
        if not bool((variances > 0).all()):
            raise ValueError(f"variances must be positive, the smallest is {float(variances.min()):.3g}")
        self.dim = d
        self.weights = weights / weights.sum()
        self.means = means
        self.mean = self.weights @ means
        self.factors = factors
        self.variances = variances
        exact, precisions = factors.double(), 1.0 / variances.double()
        scaled = exact * precisions[:, :, None]  # Ψ⁻¹ Λ
        root = torch.linalg.cholesky(torch.eye(factors.shape[2]).to(exact) + exact.mT @ scaled)
        # (K, d, r), A⁻¹ Λᵀ Ψ⁻¹ transposed: latents times it are the factors' expectations.
        self._expect = torch.cholesky_solve(scaled.mT, root).mT.to(means)
        log_det = variances.double().log().sum(1) + 2.0 * root.diagonal(dim1=1, dim2=2).log().sum(1)
        self._log_scale = (0.5 * (log_det + d * LOG_2PI)).to(means)

    @property
    def kind(self) -> Literal["low_rank", "diagonal"]:
        """Which covariances these are: low_rank, or diagonal where there is no factor."""
        return "low_rank" if self.factors.shape[2] else "diagonal"

    @classmethod
    def fit(cls, z: Tensor, components: int = 10, seed: int = 0, *, rank: int) -> Self:
        """Maximum likelihood by EM from a k-means start, in float64 on the latents' device.

        Args:
            z: (n, d) encodings, at least as many as components.
            components: the number K of components.
            seed: of the k-means start and of the factors'.
            rank: r, below d; 0 for diagonal covariances.

        Raises:
            ValueError: with fewer rows than components, or a rank out of range.
        """
        return cls(*fit_factor_mixture(z, components, rank, seed))

    def covariances(self) -> Tensor:
        """(K, d, d) covariances, dense: for few dimensions only."""
        return self.factors @ self.factors.mT + torch.diag_embed(self.variances)

    def _parts(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Per chunk of c latents: each component's log joint density (K, c), and `C⁻¹ (z - m)` (K, c, d)."""
        self._check(z)
        chunk = max(1, _CHUNK_NUMBERS // self.means.numel())
        for start in range(0, max(len(z), 1), chunk):
            offset = z[start : start + chunk] - self.means[:, None]
            expected = offset @ self._expect
            rest = offset - expected @ self.factors.mT
            inverse = rest / self.variances[:, None]
            squares = (rest * inverse).sum(2) + expected.square().sum(2)
            yield (self.weights.log() - self._log_scale)[:, None] - 0.5 * squares, inverse

    def energy(self, z: Tensor) -> Tensor:
        """Energy (n,) in nats of latents (n, d)."""
        return torch.cat([-log_joint.logsumexp(0) for log_joint, _ in self._parts(z)])

    def score(self, z: Tensor) -> Tensor:
        """Score `Σₖ p(k | z) Cₖ⁻¹ (mₖ - z)` (n, d) at latents (n, d)."""
        return torch.cat(
            [
                -torch.einsum("nk,knd->nd", softmax_or_zero(log_joint.mT), inverse)
                for log_joint, inverse in self._parts(z)
            ]
        )

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """`n` independent draws (n, d)."""
        labels = drawn_components(n, self.weights, generator)
        own = self.variances.sqrt()[labels] * standard_noise(n, self.means, generator)
        common = standard_noise(n, self.factors, generator)
        return self.means[labels] + temperature * (own + scaled_noise(common, self.factors, labels))

    def smoothed(self, sigma: float) -> "LowRankMixture":
        """The mixture with every covariance widened by `sigma² I`."""
        return LowRankMixture(self.weights, self.means, self.factors, self.variances + checked_sigma(sigma) ** 2)

    def smallest_variance(self) -> float:
        """Smallest of the variances beside the factors: no direction has less, though all may have more."""
        return float(self.variances.min())


def fit_gaussians(
    z: Tensor, components: int = 10, seed: int = 0, *, kind: str | None = None, rank: int = 0
) -> GaussianMixture | LowRankMixture:
    """A Gaussian mixture of latents, with full covariances where they are affordable, else the next best kind.

    Args:
        z: (n, d) encodings, at least as many as components.
        components: the number K of components.
        seed: of the k-means start.
        kind: full, low_rank or diagonal; None: what `choose_covariances` says for d and K.
        rank: of kind low_rank where `kind` is given.

    Raises:
        ValueError: with fewer rows than components, an unknown kind, or a rank out of range.

    Example:
        >>> z = torch.randn(500, 520, generator=torch.Generator().manual_seed(0))
        >>> fit_gaussians(z[:, :8], 2).kind, fit_gaussians(z, 2).kind
        ('full', 'low_rank')
    """
    if kind is None:
        kind, rank = choose_covariances(z.shape[-1], components)
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose {', '.join(KINDS)}")
    if kind == "low_rank" and rank < 1:
        raise ValueError(f"rank is {rank}: kind low_rank needs at least 1")
    if kind == "full":
        return GaussianMixture.fit(z, components, seed)
    return LowRankMixture.fit(z, components, seed, rank=rank if kind == "low_rank" else 0)
