"""Encodings of a training set and their whitening: what the sampler net learns to draw."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Encodings", "Posterior", "Whitening"]


class Posterior(NamedTuple):
    """The encoder's diagonal Gaussian approximation of each image's Gibbs posterior.

    Attributes:
        mean: (n, d).
        log_variance: (n, d).
    """

    mean: Tensor
    log_variance: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Reparametrised draws `mean + std · noise` for noise (n, d), or (n, M, d) for M per image."""
        extra = noise.ndim - self.mean.ndim
        mean, log_variance = (t.unsqueeze(1) if extra else t for t in self)
        return mean + torch.exp(0.5 * log_variance) * noise


class Whitening(NamedTuple):
    """Affine map to zero mean and unit covariance: `u = (z - mean) W`, `z = mean + u W⁻¹`.

    Attributes:
        mean: (d,).
        matrix: (d, d) W, symmetric.
        inverse: (d, d) W⁻¹.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def whiten(self, z: Tensor) -> Tensor:
        """Latents (n, d) to whitened coordinates."""
        return (z - self.mean) @ self.matrix

    def unwhiten(self, u: Tensor) -> Tensor:
        """Whitened coordinates (n, d) to latents."""
        return self.mean + u @ self.inverse


@dataclass(frozen=True)
class Encodings:
    """Posteriors of a whole data set: the aggregate posterior `p(z) = mean_x q(z | x)` and how to draw from it.

    Attributes:
        mean: (N, d) posterior means.
        log_variance: (N, d) posterior log variances.

    Example:
        >>> encodings = Encodings(torch.randn(100, 2) * 3 + 1, torch.full((100, 2), -4.0))
        >>> u = encodings.whitening().whiten(encodings.mean)
        >>> bool((u.mean(0).abs() < 1e-5).all())
        True
    """

    mean: Tensor
    log_variance: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.log_variance.shape or self.mean.ndim != 2:
            raise ValueError(
                f"means {tuple(self.mean.shape)} and log variances {tuple(self.log_variance.shape)} "
                "must both be (N, d)"
            )

    def __len__(self) -> int:
        return len(self.mean)

    def covariance(self) -> Tensor:
        """(d, d) covariance of the aggregate posterior: that of the means plus the mean posterior variance."""
        return self.exact_covariance().to(self.mean)

    def exact_covariance(self) -> Tensor:
        """The same in float64: in float32 the small eigenvalues of nearly flat encodings would be rounding errors."""
        of_means = torch.cov(self.mean.T.double(), correction=0).reshape(2 * self.mean.shape[1:])
        return of_means + torch.diag(self.log_variance.double().exp().mean(0))

    def whitening(self) -> Whitening:
        """The whitening of the aggregate posterior (symmetric square root, in float64)."""
        covariance = self.exact_covariance()
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp(min=1e-10 * values.max())
        root = values.sqrt()
        matrix, inverse = (vectors * (1.0 / root)) @ vectors.T, (vectors * root) @ vectors.T
        dtype = self.mean.dtype
        return Whitening(self.mean.mean(0), matrix.to(dtype), inverse.to(dtype))

    def draw(self, n: int, generator: torch.Generator, noise: float = 1.0) -> Tensor:
        """Fresh draws of the aggregate posterior: images with replacement, then posterior noise.

        Args:
            n: how many.
            generator: on the device of the encodings.
            noise: share of the posterior's standard deviation, 1 for the aggregate posterior itself.

        Returns:
            (n, d) latents.
        """
        device = self.mean.device
        index = torch.randint(len(self), (n,), generator=generator, device=device)
        epsilon = torch.randn(n, self.mean.shape[1], generator=generator, device=device, dtype=self.mean.dtype)
        return Posterior(self.mean[index], self.log_variance[index]).draw(noise * epsilon)
