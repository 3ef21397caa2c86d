"""Latent densities in Gibbs form, `p(z) = exp(-E(z))`, with their scores in closed form.

Each density knows its normalised energy `E(z) = -log p(z)`, its score `-∇E(z)`, how to draw from itself, and
what it becomes when Gaussian noise is added to its draws (`smoothed`), which annealed Langevin dynamics needs.
They are immutable: every method returns something new. `StandardNormal` is the prior of a plain VAE;
`Gaussian` and `GaussianMixture` are ex-post fits (Ghosh et al. 2020, 1903.12436); `KernelMixture` is the
aggregate posterior of an encoder, one diagonal Gaussian per encoded image.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

__all__ = ["Gaussian", "GaussianMixture", "KernelMixture", "LatentDensity", "StandardNormal"]

_LOG_2PI = math.log(2.0 * math.pi)
_CHUNK_ELEMENTS = 2**22  # of the (queries, components) matrix of a KernelMixture held at one time


def _cholesky(covariance: Tensor, name: str) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(covariance)
    if bool(info.any()):
        smallest = float(torch.linalg.eigvalsh(covariance).min())
        raise ValueError(f"{name} must be positive definite, its smallest eigenvalue is {smallest:.3g}")
    return factor


def _noise(n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(n, like.shape[-1], generator=generator, dtype=like.dtype, device=like.device)


def _check_sigma(sigma: float) -> float:
    if not 0.0 <= sigma < math.inf:
        raise ValueError(f"sigma must be a finite number >= 0, got {sigma}")
    return sigma


class LatentDensity(ABC):
    """A density over latents, `p(z) = exp(-E(z))` on R^d.

    Attributes:
        dim: the number d of latent dimensions.
    """

    dim: int

    @abstractmethod
    def energy(self, z: Tensor) -> Tensor:
        """Normalised energy `E(z) = -log p(z)` in nats: (n, d) -> (n,)."""

    @abstractmethod
    def score(self, z: Tensor) -> Tensor:
        """Score `∇ log p(z) = -∇E(z)`: (n, d) -> (n, d)."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent exact draws (n, d); a generator must live on the density's device."""

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
            jitter: added to every variance, as scikit-learn's `reg_covar`, so that a collapsed latent dimension
                does not make the covariance singular.

        Raises:
            ValueError: with fewer than two rows.
        """
        if z.ndim != 2 or z.shape[0] < 2:
            raise ValueError(f"fit needs (n, d) encodings with at least 2 rows, got {tuple(z.shape)}")
        rows = z.detach().double()
        covariance = torch.cov(rows.T).reshape(z.shape[1], z.shape[1]) + jitter * torch.eye(z.shape[1]).to(
            rows
        )
        return cls(rows.mean(0).to(z.dtype), covariance.to(z.dtype))

    def energy(self, z: Tensor) -> Tensor:
        """Energy (n,) in nats of latents (n, d)."""
        self._check(z)
        white = torch.linalg.solve_triangular(self._factor, (z - self.mean).T, upper=False)
        log_det = self._factor.diagonal().log().sum()
        return 0.5 * (white * white).sum(0) + log_det + 0.5 * self.dim * _LOG_2PI

    def score(self, z: Tensor) -> Tensor:
        """Score `-C⁻¹ (z - m)` (n, d) at latents (n, d)."""
        self._check(z)
        return -torch.cholesky_solve((z - self.mean).T, self._factor).T

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws (n, d)."""
        return self.mean + _noise(n, self.mean, generator) @ self._factor.T

    def smoothed(self, sigma: float) -> "Gaussian":
        """`N(m, C + sigma² I)`."""
        noise = _check_sigma(sigma) ** 2 * torch.eye(self.dim).to(self.covariance)
        return Gaussian(self.mean, self.covariance + noise)

    def smallest_variance(self) -> float:
        """Smallest eigenvalue of the covariance."""
        return float(torch.linalg.eigvalsh(self.covariance).min())


class StandardNormal(Gaussian):
    """`N(0, I)`, the energy `E(z) = ½ |z|² + (d/2) log 2π` of a plain VAE's prior; `smoothed` is a `Gaussian`.

    Args:
        dim: the number d of latent dimensions.

    Raises:
        ValueError: if `dim` is not positive.

    Example:
        >>> StandardNormal(2).energy(torch.zeros(1, 2))  # log 2π
        tensor([1.8379])
    """

    def __init__(
        self, dim: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ):
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        super().__init__(
            torch.zeros(dim, dtype=dtype, device=device), torch.eye(dim, dtype=dtype, device=device)
        )


class GaussianMixture(LatentDensity):
    """A mixture of full Gaussians, `E(z) = -log Σₖ wₖ N(z; mₖ, Cₖ)`.

    Args:
        weights: (K,) non-negative weights; they are normalised to sum to one.
        means: (K, d) component means.
        covariances: (K, d, d) component covariances, each positive definite.

    Raises:
        ValueError: on shapes that do not fit, negative weights, or a covariance that is not positive definite.

    Example:
        >>> pair = GaussianMixture(torch.ones(2), torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1, 1))
        >>> pair.score(torch.tensor([[0.0], [3.0]])).round(decimals=4)
        tensor([[0.], [0.]])
    """

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
        self.covariances = covariances
        self._factors = _cholesky(covariances, "every covariance")
        eye = torch.eye(d).to(covariances).expand(k, d, d)
        self._inverse_factors = torch.linalg.solve_triangular(self._factors, eye, upper=False)

    @classmethod
    def fit(cls, z: Tensor, components: int = 10, seed: int = 0) -> Self:
        """Maximum likelihood by scikit-learn's EM (k-means start, `reg_covar` 1e-6), in float64 on the CPU.

        Args:
            z: (n, d) encodings, at least as many as components.
            components: the number K of components.
            seed: of the k-means start.

        Raises:
            ValueError: with fewer rows than components.
        """
        if z.ndim != 2 or components < 1 or z.shape[0] < max(2, components):
            raise ValueError(
                f"fit needs components >= 1 and as many rows, got {components} and {tuple(z.shape)}"
            )
        from sklearn import mixture  # here, because importing it takes a second

        model = mixture.GaussianMixture(components, covariance_type="full", random_state=seed)
        model.fit(z.detach().cpu().double().numpy())
        return cls(*(torch.as_tensor(a).to(z) for a in (model.weights_, model.means_, model.covariances_)))

    def _whitened(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents whitened by each component (n, K, d), and the log joint density of each component (n, K)."""
        self._check(z)
        # Relative to the mean, so that a common offset does not eat float32's digits.
        centre = self.weights @ self.means
        offsets = torch.einsum("kij,kj->ki", self._inverse_factors, self.means - centre)
        white = torch.einsum("nj,kij->nki", z - centre, self._inverse_factors) - offsets
        log_scale = self._factors.diagonal(dim1=1, dim2=2).log().sum(1) + 0.5 * self.dim * _LOG_2PI
        return white, self.weights.log() - log_scale - 0.5 * (white * white).sum(2)

    def energy(self, z: Tensor) -> Tensor:
        """Energy (n,) in nats of latents (n, d)."""
        return -self._whitened(z)[1].logsumexp(1)

    def score(self, z: Tensor) -> Tensor:
        """Score `Σₖ p(k | z) Cₖ⁻¹ (mₖ - z)` (n, d) at latents (n, d)."""
        white, log_joint = self._whitened(z)
        weighted = log_joint.softmax(1).unsqueeze(2) * white
        return -torch.einsum("nki,kij->nj", weighted, self._inverse_factors)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws (n, d)."""
        labels = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = _noise(n, self.means, generator)
        for k, (mean, factor) in enumerate(zip(self.means, self._factors, strict=True)):
            rows = labels == k
            z[rows] = mean + z[rows] @ factor.T
        return z

    def smoothed(self, sigma: float) -> "GaussianMixture":
        """The mixture with every covariance widened by `sigma² I`."""
        noise = _check_sigma(sigma) ** 2 * torch.eye(self.dim).to(self.covariances)
        return GaussianMixture(self.weights, self.means, self.covariances + noise)

    def smallest_variance(self) -> float:
        """Smallest eigenvalue of any component's covariance."""
        return float(torch.linalg.eigvalsh(self.covariances).min())


class KernelMixture(LatentDensity):
    """One diagonal Gaussian per encoding, `E(z) = -log (1/N) Σᵢ N(z; μᵢ, diag(vᵢ))`: the aggregate posterior.

    With `vᵢ = max(exp(log_varianceᵢ), floor²)`. The floor matters when the score is fed back into the encoder
    whose encodings these are: without it, and without `exclude`, sharpening a component raises the density at
    its own centre without bound, and the posterior collapses to points.

    Each component is held in its natural parameters, `log N(z; μ, v) = a·z² + b·z + c`, so that energies and
    scores are two matrix products with the (n, N) matrix, taken over chunks of queries: memory is bounded and
    no (n, N, d) tensor is made. In float32 the energy's error grows as `|z|² / min v · 1e-7` nats.

    Args:
        means: (N, d) encodings μ.
        log_variances: (N, d) log variances of the encoder; None: the floor alone is the bandwidth.
        floor: smallest standard deviation allowed, in latent units.

    Raises:
        ValueError: on shapes that do not fit, or a floor that is negative, or not positive without log variances.

    Example:
        >>> density = KernelMixture(torch.tensor([[-1.0], [1.0]]), floor=0.5)
        >>> density.score(torch.tensor([[1.0]]), exclude=torch.tensor([1]))  # sees the encoding at -1 only
        tensor([[-8.]])
    """

    def __init__(self, means: Tensor, log_variances: Tensor | None = None, floor: float = 0.0):
        if means.ndim != 2 or means.shape[0] == 0:
            raise ValueError(f"expected means of shape (N, d) with N >= 1, got {tuple(means.shape)}")
        if log_variances is None:
            if not 0.0 < floor < math.inf:
                raise ValueError(f"floor must be positive when there are no log_variances, got {floor}")
            log_variances = torch.full_like(means, 2.0 * math.log(floor))
        elif log_variances.shape != means.shape:
            raise ValueError(
                f"log_variances must have the shape of means {tuple(means.shape)}, got {tuple(log_variances.shape)}"
            )
        elif not 0.0 <= floor < math.inf:
            raise ValueError(f"floor must be a finite number >= 0, got {floor}")
        self.dim = means.shape[1]
        self.means = means
        self.variances = log_variances.exp().clamp(min=floor**2)
        # Relative to the mean of the centres: the products below cancel, and an offset would eat their digits.
        self._centre = means.double().mean(0).to(means.dtype)
        centred, precisions = means - self._centre, 1.0 / self.variances
        self._natural = torch.cat([-0.5 * precisions, centred * precisions], 1)  # (N, 2d): a and b
        log_scale = (self.variances.log() + centred * centred * precisions).sum(1) + self.dim * _LOG_2PI
        self._constants = -0.5 * log_scale - math.log(len(means))  # (N,): c, with the weight 1/N in it

    def _excluded(self, exclude: Tensor | None, n: int) -> Tensor | None:
        components = len(self.means)
        if exclude is None or (exclude.dtype == torch.bool and exclude.shape == (n, components)):
            return exclude
        if exclude.dtype != torch.int64 or exclude.shape != (n,):
            raise ValueError(
                f"exclude must be int64 of shape ({n},) or bool of shape ({n}, {components}), "
                f"got {exclude.dtype} of shape {tuple(exclude.shape)}"
            )
        if components == 1:
            raise ValueError("exclude by index needs at least 2 components, or a query may see none")
        # On a GPU the scatter below asserts this itself; here it would make the host wait.
        if n and not exclude.is_cuda and not -1 <= int(exclude.min()) <= int(exclude.max()) < components:
            raise ValueError(f"exclude must lie in -1 .. {components - 1}")
        return exclude

    def _log_joint(self, z: Tensor, exclude: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Per chunk of queries: centred latents (c, d) and the log joint density of each component (c, N)."""
        self._check(z)
        exclude = self._excluded(exclude, len(z))
        chunk = max(1, _CHUNK_ELEMENTS // len(self.means))
        for start in range(0, max(len(z), 1), chunk):
            centred = z[start : start + chunk] - self._centre
            features = torch.cat([centred * centred, centred], 1)
            logits = torch.addmm(self._constants, features, self._natural.T)
            if exclude is not None:
                hidden = exclude[start : start + chunk]
                if hidden.dtype != torch.bool:
                    index, seen = hidden.clamp(min=0).unsqueeze(1), (hidden < 0).unsqueeze(1)
                    hidden = torch.zeros_like(logits, dtype=torch.bool).scatter(1, index, ~seen)
                logits = logits.masked_fill(hidden, -math.inf)
            yield centred, logits

    def energy(self, z: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Energy (n,) in nats of latents (n, d).

        Args:
            z: (n, d) latents.
            exclude: which component each query must not see: (n,) int64 indices, -1 for none, or a boolean
                (n, N) mask, True where hidden. The others are weighted `1 / (number seen)`. A query whose mask
                hides everything has energy inf and a score of nan.

        Raises:
            ValueError: on latents of another dimension or an `exclude` of another shape or range.
        """
        energy = torch.cat([-logits.logsumexp(1) for _, logits in self._log_joint(z, exclude)])
        if exclude is None:
            return energy
        hidden = exclude.sum(1) if exclude.dtype == torch.bool else (exclude >= 0)
        return energy + torch.log1p(-hidden.to(energy.dtype) / len(self.means))

    def score(self, z: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Score `Σᵢ p(i | z) (μᵢ - z) / vᵢ` (n, d) at latents (n, d); `exclude` and errors as in `energy`."""
        scores = []
        for centred, logits in self._log_joint(z, exclude):
            slope, intercept = (logits.softmax(1) @ self._natural).chunk(2, dim=1)
            scores.append(2.0 * slope * centred + intercept)
        return torch.cat(scores)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws (n, d): an encoding at random, then its posterior noise."""
        rows = torch.randint(len(self.means), (n,), generator=generator, device=self.means.device)
        return self.means[rows] + self.variances[rows].sqrt() * _noise(n, self.means, generator)

    def smoothed(self, sigma: float) -> "KernelMixture":
        """The mixture with every variance widened by `sigma²`."""
        return KernelMixture(self.means, (self.variances + _check_sigma(sigma) ** 2).log())

    def smallest_variance(self) -> float:
        """Smallest variance of any component along any axis."""
        return float(self.variances.min())
