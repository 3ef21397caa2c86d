"""The aggregate posterior of an encoder as a latent density: one diagonal Gaussian per encoded image."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ldcvae.densities.gaussian import LOG_2PI, LatentDensity, checked_sigma
from ldcvae.densities.noise import standard_noise
from ldcvae.exponentials import softmax_or_zero

__all__ = ["KernelMixture"]

_CHUNK_ELEMENTS = 2**22  # of the (queries, components) matrix of a KernelMixture held at one time


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
        ValueError: on shapes that do not fit, a negative floor, or without log variances a floor of zero.

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
        # Relative to the mean of the centres: the products cancel, and an offset would eat their digits.
        self.mean = means.double().mean(0).to(means.dtype)
        centred, precisions = means - self.mean, 1.0 / self.variances
        self._natural = torch.cat([-0.5 * precisions, centred * precisions], 1)  # (N, 2d): a and b
        log_scale = (self.variances.log() + centred * centred * precisions).sum(1) + self.dim * LOG_2PI
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
            centred = z[start : start + chunk] - self.mean
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
                (n, N) mask, True where hidden. The others are weighted `1 / (number seen)`. A query whose
                mask hides everything has energy inf and a score of nan.

        Raises:
            ValueError: on latents of another dimension or an `exclude` of another shape or range.
        """
        energy = torch.cat([-logits.logsumexp(1) for _, logits in self._log_joint(z, exclude)])
        if exclude is None:
            return energy
        components = len(self.means)
        hidden = exclude.sum(1) if exclude.dtype == torch.bool else (exclude >= 0).to(torch.int64)
        return energy + torch.log1p(-hidden.clamp(max=components - 1).to(energy) / components)

    def score(self, z: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Score `Σᵢ p(i | z) (μᵢ - z) / vᵢ` (n, d) at latents (n, d); `exclude` and errors as in `energy`."""
        scores = []
        for centred, logits in self._log_joint(z, exclude):
            slope, intercept = (softmax_or_zero(logits) @ self._natural).chunk(2, dim=1)
            scores.append(2.0 * slope * centred + intercept)
        return torch.cat(scores)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """`n` independent draws (n, d): an encoding at random, then its posterior noise."""
        rows = torch.randint(len(self.means), (n,), generator=generator, device=self.means.device)
        noise = temperature * standard_noise(n, self.means, generator)
        return self.means[rows] + self.variances[rows].sqrt() * noise

    def smoothed(self, sigma: float) -> "KernelMixture":
        """The mixture with every variance widened by `sigma²`."""
        return KernelMixture(self.means, (self.variances + checked_sigma(sigma) ** 2).log())

    def smallest_variance(self) -> float:
        """Smallest variance of any component along any axis."""
        return float(self.variances.min())
