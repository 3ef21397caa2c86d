"""Peers of the sampler net that follow a velocity from a start, N(0, I) or a mixture, to the encodings.

Paths are straight, `u_t = (1 - t) start + t u`: flow matching learns the velocity at each point and integrates it,
MeanFlow the mean velocity between two times, with which one pass is the whole way.
"""

import math

import torch
from torch import Tensor, nn

from ldcvae.networks import residual_mlp
from ldcvae.rivals.fitting import TemperedDraw
from ldcvae.rivals.generators import Fit

__all__ = ["fit_flow_matching", "fit_mean_flow"]

_FREQUENCIES = 4  # of the features of a time
_EQUAL_TIMES = 0.75  # share of a MeanFlow batch that is plain flow matching (2505.13447, table 1a)
_TIME_MEAN, _TIME_STD = 0.4, 1.0  # of the logit of a time (table 1d; there time runs from data to noise)


class _Velocity(nn.Module):
    """v(u, t), or v(u, t, r): from the point and Fourier features of the times."""

    def __init__(self, dim: int, width: int, depth: int, times: int = 1):
        super().__init__()
        self.network = residual_mlp(dim + times * (1 + 2 * _FREQUENCIES), dim, width, depth)

    def forward(self, u: Tensor, *times: Tensor) -> Tensor:
        features = [u]
        for t in times:
            angles = 2.0 * math.pi * t * torch.arange(1, _FREQUENCIES + 1, device=t.device)
            features += [t, angles.sin(), angles.cos()]
        return self.network(torch.cat(features, 1))


def _normal(fit: Fit) -> TemperedDraw:
    def draw(n: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        return temperature * torch.randn(n, fit.dim, generator=generator, device=generator.device)

    return draw


def fit_flow_matching(fit: Fit, euler_steps: int = 50, start: TemperedDraw | None = None) -> TemperedDraw:
    """Flow matching on straight paths from a start to the draws (Lipman et al. 2023, 2210.02747, eq. 23).

    Args:
        fit: how to train.
        euler_steps: passes of the velocity net per draw.
        start: `(n, generator, temperature)` -> (n, d) whitened; None for N(0, I).

    Returns:
        A sampler that integrates the velocity by Euler's method.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> fit = Fit(lambda n: 3 + torch.randn(n, 2, generator=generator), 2, steps=300, batch=128,
        ...           learning_rate=5e-3, width=32, depth=1, generator=generator)
        >>> bool((fit_flow_matching(fit)(2000, generator).mean(0) - 3).abs().max() < 0.2)
        True
    """
    begin = start if start is not None else _normal(fit)
    network = fit.build(lambda: _Velocity(fit.dim, fit.width, fit.depth))

    def loss(u: Tensor) -> Tensor:
        first = begin(len(u), fit.generator)
        t = torch.rand(len(u), 1, generator=fit.generator, device=u.device)
        return (network(torch.lerp(first, u, t), t) - (u - first)).square().sum(1).mean()

    velocity = fit.run(network, loss)

    @torch.no_grad()
    def draw(n: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        u = begin(n, generator, temperature)
        for step in range(euler_steps):
            u = u + velocity(u, u.new_full((n, 1), step / euler_steps)) / euler_steps
        return u

    return draw


def fit_mean_flow(fit: Fit, start: TemperedDraw | None = None) -> TemperedDraw:
    """MeanFlow: the mean velocity from t to r, learnt by its own identity; one pass a draw (Geng et al. 2505.13447).

    `m(u_t, t, r) = v + (r - t) d/dt m`, with the derivative along the path by a forward-mode product (eq. 6, time
    running from start to data), squared error weighted by one over itself (section 4.3, p = 1).

    Args:
        fit: how to train.
        start: `(n, generator, temperature)` -> (n, d) whitened; None for N(0, I).

    Returns:
        A sampler: one pass.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> fit = Fit(lambda n: 1 + torch.randn(n, 2, generator=generator), 2, steps=300, batch=128,
        ...           learning_rate=5e-3, width=32, depth=1, generator=generator)
        >>> bool((fit_mean_flow(fit)(2000, generator).mean(0) - 1).abs().max() < 0.5)
        True
    """
    begin = start if start is not None else _normal(fit)
    network = fit.build(lambda: _Velocity(fit.dim, fit.width, fit.depth, times=2))

    def loss(u: Tensor) -> Tensor:
        n = len(u)
        first = begin(n, fit.generator)
        logits = torch.randn(2, n, 1, generator=fit.generator, device=u.device)
        times = torch.sigmoid(_TIME_MEAN + _TIME_STD * logits)
        t, r = times.amin(0), times.amax(0)
        r[: int(_EQUAL_TIMES * n)] = t[: int(_EQUAL_TIMES * n)]
        velocity, at = u - first, torch.lerp(first, u, t)
        tangents = velocity, torch.ones_like(t), torch.zeros_like(r)
        mean, derivative = torch.func.jvp(network, (at, t, r), tangents)[:2]
        error = (mean - (velocity + (r - t) * derivative).detach()).square().sum(1)
        return (error / (error.detach() + 1e-3)).mean()

    average = fit.run(network, loss)

    @torch.no_grad()
    def draw(n: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        u = begin(n, generator, temperature)
        return u + average(u, u.new_zeros(n, 1), u.new_ones(n, 1))

    return draw
