"""Latent densities in Gibbs form, `p(z) = exp(-E(z))`: the interface that each has, and Gaussian ones.

A density knows its normalised energy `E(z) = -log p(z)`, its score `-∇E(z)`, how to draw from itself, and what it
becomes when Gaussian noise is added to its draws (`smoothed`), which annealed Langevin dynamics needs. Densities are
immutable: every method returns something new.

`StandardNormal` is the prior of a plain VAE; `Gaussian` and `GaussianMixture` are ex-post fits to encodings
(Ghosh et al. 2020, 1903.12436). Import them from `ldcvae.densities`.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, Self

import torch
from torch import Tensor

from ldcvae.densities.em import fit_mixture
from ldcvae.densities.noise import drawn_components, scaled_noise, standard_noise
from ldcvae.exponentials import softmax_or_zero

__all__ = ["Gaussian", "GaussianMixture", "LatentDensity", "StandardNormal"]

LOG_2PI = math.log(2.0 * math.pi)
_CHUNK_NUMBERS = 2**22  # of latents whitened by every component (n, K, d) held at one time


def _cholesky(covariance: Tensor, name: str) -> Tensor:
    # In float64: what is definite by little in float32 is so in exact numbers.
    factor, info = torch.linalg.cholesky_ex(covariance.double())
    if bool(info.any()):
        smallest = float(torch.linalg.eigvalsh(covariance.double()).min())
        raise ValueError(f"{name} must be positive definite, its smallest eigenvalue is {smallest:.3g}")
    return factor.to(covariance)


def checked_sigma(sigma: float) -> float:
    """`sigma` itself, or a ValueError saying what it may be."""
    if not 0.0 <= sigma < math.inf:
        raise ValueError(f"sigma must be a finite number >= 0, got {sigma}")
    return sigma


class LatentDensity(ABC):
    """A density over latents, `p(z) = exp(-E(z))` on R^d.

    Attributes:
        dim: the number d of latent dimensions.
        mean: (d,) mean; its dtype and device are the density's.
    """

    dim: int
    mean: Tensor

    @abstractmethod
    def energy(self, z: Tensor) -> Tensor:
        """Normalised energy `E(z) = -log p(z)` in nats: (n, d) -> (n,)."""

    @abstractmethod
    def score(self, z: Tensor) -> Tensor:
        """Score `∇ log p(z) = -∇E(z)`: (n, d) -> (n, d)."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """`n` independent draws (n, d), exact at temperature 1; a generator must live on the density's device.

        Args:
            n: how many.
            generator: draws the noise.
            temperature: factor of each component's standard deviation about its mean.
        """

    @abstractmethod
    def smoothed(self, sigma: float) -> "LatentDensity":
        """The law of `z + sigma·ε`, `ε ~ N(0, I)`: this density convolved with `N(0, sigma² I)`."""

    @abstractmethod
    def smallest_variance(self) -> float:
        """Smallest variance of any component along any direction: the local scale of the energy."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same density on another device or in another dtype."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device=device, dtype=dtype))
        return moved

    def _check(self, z: Tensor) -> None:
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"expected latents of shape (n, {self.dim}), got {tuple(z.shape)}")


class Gaussian(LatentDensity):
    """A Gaussian, `E(z) = ½ (z - m)ᵀ C⁻¹ (z - m) + ½ log det(2πC)`.

    Args:
        mean: (d,) mean m.
        covariance: (d, d) covariance C, symmetric and positive definite.

    Raises:
        ValueError: on shapes that do not fit, or a covariance that is not positive definite.

    Example:
        >>> density = Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 4.0])))
        >>> density.score(torch.tensor([[1.0, 2.0]]))
        tensor([[-1.0000, -0.5000]])
    """

    def __init__(self, mean: Tensor, covariance: Tensor):
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"expected a mean (d,) and a covariance (d, d), got {tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        self.dim = len(mean)
        self.mean = mean
        self.covariance = covariance
        self._factor = _cholesky(covariance, "covariance")

    @classmethod
    def fit(cls, z: Tensor, jitter: float = 1e-6) -> Self:
        """The Gaussian with the mean and the covariance of the rows of `z` (n, d).

        Args:
            z: (n, d) encodings, n >= 2.
            jitter: share of the mean variance that is added to every variance, so that a collapsed latent
                dimension does not make the covariance singular.

        Raises:
            ValueError: with fewer than two rows.
        """
        if z.ndim != 2 or z.shape[0] < 2:
            raise ValueError(f"fit needs (n, d) encodings with at least 2 rows, got {tuple(z.shape)}")
        rows = z.detach().double()
        covariance = torch.cov(rows.T).reshape(z.shape[1], z.shape[1])
        share = jitter * float(covariance.diagonal().mean()) or jitter  # of rows that coincide: itself
        covariance.diagonal().add_(share)
        # Factored before it is rounded: in float32 the jitter may be less than the rounding.
        return cls(rows.mean(0), covariance).to(dtype=z.dtype)

    def energy(self, z: Tensor) -> Tensor:
        """Energy (n,) in nats of latents (n, d)."""
        self._check(z)
        white = torch.linalg.solve_triangular(self._factor, (z - self.mean).T, upper=False)
        log_det = self._factor.diagonal().log().sum()
        return 0.5 * (white * white).sum(0) + log_det + 0.5 * self.dim * LOG_2PI

    def score(self, z: Tensor) -> Tensor:
        """Score `-C⁻¹ (z - m)` (n, d) at latents (n, d)."""
        self._check(z)
        return -torch.cholesky_solve((z - self.mean).T, self._factor).T

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """`n` independent draws (n, d)."""
        return self.mean + temperature * standard_noise(n, self.mean, generator) @ self._factor.T

    def smoothed(self, sigma: float) -> "Gaussian":
        """`N(m, C + sigma² I)`."""
        noise = checked_sigma(sigma) ** 2 * torch.eye(self.dim).to(self.covariance)
        return Gaussian(self.mean, self.covariance + noise)

    def smallest_variance(self) -> float:
        """Smallest eigenvalue of the covariance."""
        return float(torch.linalg.eigvalsh(self.covariance.double()).min())  # in float32 it may come out negative


class StandardNormal(Gaussian):
    """`N(0, I)`, a plain VAE's prior: `E(z) = ½ |z|² + (d/2) log 2π`. Its `smoothed` is a `Gaussian`.

    Args:
        dim: the number d of latent dimensions.

    Raises:
        ValueError: if `dim` is not positive.

    Example:
        >>> StandardNormal(2).energy(torch.zeros(1, 2))  # log 2π
        tensor([1.8379])
    """

    def __init__(self, dim: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None):
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        super().__init__(torch.zeros(dim, dtype=dtype, device=device), torch.eye(dim, dtype=dtype, device=device))


class GaussianMixture(LatentDensity):
    """A mixture of full Gaussians, `E(z) = -log Σₖ wₖ N(z; mₖ, Cₖ)`.

    Args:
        weights: (K,) non-negative weights; they are normalised to sum to one.
        means: (K, d) component means.
        covariances: (K, d, d) component covariances, each positive definite.

    Raises:
        ValueError: on shapes that do not fit, negative weights, or a covariance not positive definite.

    Example:
        >>> pair = GaussianMixture(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1, 1))
        >>> pair.score(torch.tensor([[4.0]]))
        tensor([[-1.]])
    """

    kind: Literal["full"] = "full"  # the other kinds of covariances are `ldcvae.densities.low_rank`'s

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        k, d = means.shape if means.ndim == 2 else (0, 0)
        if k == 0 or weights.shape != (k,) or covariances.shape != (k, d, d):
            raise ValueError(
                "expected weights (K,), means (K, d) and covariances (K, d, d), got "
                f"{tuple(weights.shape)}, {tuple(means.shape)} and {tuple(covariances.shape)}"
            )
        if bool((weights < 0).any()) or not 0.0 < float(weights.sum()) < math.inf:
            raise ValueError(f"weights must be >= 0 with a positive sum, got {weights.tolist()}")
        self.dim = d
        self.weights = weights / weights.sum()
        self.means = means
        self.mean = self.weights @ means
        self.covariances = covariances
        self._factors = _cholesky(covariances, "every covariance")
        eye = torch.eye(d).to(covariances).expand(k, d, d)
        self._inverse_factors = torch.linalg.solve_triangular(self._factors, eye, upper=False)

    @classmethod
    def fit(cls, z: Tensor, components: int = 10, seed: int = 0, *, variances: Tensor | None = None) -> Self:
        """Maximum likelihood by EM from a k-means start, in float64 on the latents' device.

        Args:
            z: (n, d) encodings, at least as many as components.
            components: the number K of components.
            seed: of the k-means start.
            variances: (n, d), where rows are Gaussians' means (`ldcvae.densities.em.fit_mixture`).

        Raises:
            ValueError: with fewer rows than components.
        """
        # Factored before they are rounded, as of one Gaussian.
        return cls(*fit_mixture(z.double(), components, seed, variances=variances)).to(dtype=z.dtype)

    def _chunks(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """`_whitened` of rows a bounded number of numbers at a time."""
        self._check(z)
        return map(self._whitened, z.split(max(1, _CHUNK_NUMBERS // self.means.numel())))

    def _whitened(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents whitened by each component (n, K, d), and each component's log joint density (n, K)."""
        # Relative to the mean, so that a common offset does not eat float32's digits.
        offsets = torch.einsum("kij,kj->ki", self._inverse_factors, self.means - self.mean)
        white = torch.einsum("nj,kij->nki", z - self.mean, self._inverse_factors) - offsets
        log_scale = self._factors.diagonal(dim1=1, dim2=2).log().sum(1) + 0.5 * self.dim * LOG_2PI
        return white, self.weights.log() - log_scale - 0.5 * (white * white).sum(2)

    def log_joint(self, z: Tensor) -> Tensor:
        """(n, K) `log wₖ + log N(z; mₖ, Cₖ)` of latents (n, d).

        Example:
            >>> pair = GaussianMixture(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1, 1))
            >>> pair.log_joint(torch.tensor([[2.0], [-1.0]])).argmax(1).tolist()
            [1, 0]
        """
        return torch.cat([log_joint for _, log_joint in self._chunks(z)])

    def energy(self, z: Tensor) -> Tensor:
        """Energy (n,) in nats of latents (n, d)."""
        return torch.cat([-log_joint.logsumexp(1) for _, log_joint in self._chunks(z)])

    def score(self, z: Tensor) -> Tensor:
        """Score `Σₖ p(k | z) Cₖ⁻¹ (mₖ - z)` (n, d) at latents (n, d)."""
        weighted = (softmax_or_zero(log_joint).unsqueeze(2) * white for white, log_joint in self._chunks(z))
        return torch.cat([-torch.einsum("nki,kij->nj", part, self._inverse_factors) for part in weighted])

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """`n` independent draws (n, d)."""
        labels = drawn_components(n, self.weights, generator)
        noise = temperature * standard_noise(n, self.means, generator)
        return self.means[labels] + scaled_noise(noise, self._factors, labels)

    def smoothed(self, sigma: float) -> "GaussianMixture":
        """The mixture with every covariance widened by `sigma² I`."""
        noise = checked_sigma(sigma) ** 2 * torch.eye(self.dim).to(self.covariances)
        return GaussianMixture(self.weights, self.means, self.covariances + noise)

    def smallest_variance(self) -> float:
        """Smallest eigenvalue of any component's covariance."""
        return float(torch.linalg.eigvalsh(self.covariances.double()).min())
