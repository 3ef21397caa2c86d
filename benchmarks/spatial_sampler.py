"""A sampler net and a field for latents that keep the image's plane; for `beyond_mixture.py`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldcvae.directions.fields import Step
from ldcvae.directions.kernels import nearest_neighbour_distance
from ldcvae.networks import ResidualBlock, activated
from ldcvae.training.world import keyed_generator

__all__ = ["SpatialSampler", "in_windows"]


class SpatialSampler(nn.Module):
    """`S(u) = u + f(u)`, f of convolutions and attention over the latents' plane, zero at the start.

    Whitening by the symmetric root leaves every coordinate at its place, as near to itself as whitened ones can be
    (Kessy et al. 2018, arXiv 1512.00809), so that whitened latents have a plane too. Pictures have a middle: every
    place has a bias of its own.

    Args:
        shape: (c, h, w) of the latents, d = c·h·w.
        width: channels, a multiple of 4.
        depth: residual blocks, each with a layer of attention behind it.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, depth: int):
        super().__init__()
        channels, *plane = shape
        self.stem = nn.Sequential(nn.Unflatten(1, shape), nn.Conv2d(channels, width, 3, padding=1))
        self.places = nn.Parameter(0.02 * torch.randn(width, *plane))
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.attention = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.head = nn.Sequential(*activated(width), last, nn.Flatten())

    def forward(self, base: Tensor) -> Tensor:
        """(n, d) base draws -> (n, d) whitened latents."""
        h = self.stem(base) + self.places
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = block(h)
            h = attention(h.flatten(2).mT).mT.reshape(h.shape)
        return base + self.head(h)


def in_windows(field: Callable[[Step], Tensor], shape: tuple[int, int, int], side: int) -> Callable[[Step], Tensor]:
    """A field (n, d) of a step, computed window by window: kernels see c·side² numbers at a time and not all d.

    What it follows vanishes where every window has the law of the targets' windows; what windows have to do with each
    other is left to the base. Windows don't overlap, and lie elsewhere at every step.

    Args:
        field: of a `Step`, of rms 1.
        shape: (c, h, w).
        side: of a window.
    """
    c, h, w = shape
    places = torch.arange(c * h * w).reshape(shape)
    count = 0

    def found(step: Step) -> Tensor:
        nonlocal count
        count += 1
        shift = torch.randint(side, (2,), generator=keyed_generator("cpu", "windows", count)).tolist()
        shifted = places.roll(shift, (1, 2))
        total = torch.zeros_like(step.particles)
        for i in range(0, h, side):
            for j in range(0, w, side):
                own = shifted[:, i : i + side, j : j + side].flatten()
                part = step._replace(particles=step.particles[:, own], targets=step.targets[:, own])
                unit = nearest_neighbour_distance(part.targets)
                part = part._replace(bandwidths=[width * unit for width in step.settings.bandwidths])
                total[:, own] += field(part)
        return total / total.square().mean().sqrt().clamp(min=1e-12)

    return found
