"""Noise of which draws are made: standard, and given a mixture component's covariance."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["drawn_components", "normal", "scaled_noise", "standard_noise"]

_NOISE_NUMBERS = 2**24  # of what `scaled_noise` gathers or computes in excess


def standard_noise(n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """`n` rows of N(0, I) in the width, dtype and device of `like`."""
    return torch.randn(n, like.shape[-1], generator=generator, dtype=like.dtype, device=like.device)


def normal(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard noise on a device, drawn where the generator is: one on the CPU gives the same for every device."""
    where = generator.device if generator is not None else device
    return torch.randn(*shape, generator=generator, device=where).to(device)


def drawn_components(n: int, weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """(n,) numbers of components, by their weights (K,); none for n = 0, which `torch.multinomial` refuses."""
    if n == 0:
        return torch.zeros(0, dtype=torch.long, device=weights.device)
    return torch.multinomial(weights, n, replacement=True, generator=generator)


def scaled_noise(noise: Tensor, scales: Tensor, component: Tensor) -> Tensor:
    """Each row of noise by the matrix of its component: (n, r) noise, (K, d, r) scales, (n,) components -> (n, d).

    Three ways to the same, the first two without waiting for a GPU: the matrices gathered, or all K products computed
    and one kept, while either is small; else the rows of one component after the other's.
    """
    n, (k, d, r) = len(noise), scales.shape
    if r == 0:
        return noise.new_zeros(n, d)
    if k > d and n * d * r <= _NOISE_NUMBERS:
        return (scales[component] @ noise[:, :, None])[:, :, 0]
    if k <= d and k * n * d <= _NOISE_NUMBERS:
        return (noise @ scales.mT)[component, torch.arange(n, device=noise.device)]
    order = component.argsort(stable=True)
    parts = noise[order].split(component.bincount(minlength=k).tolist())
    scaled = torch.cat([part @ scale.T for part, scale in zip(parts, scales, strict=True)])
    return torch.empty_like(scaled).index_copy_(0, order, scaled)
