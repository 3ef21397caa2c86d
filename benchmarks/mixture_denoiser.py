"""Denoisers that start as a mixture's own and learn what the mixture lacks; for `beyond_mixture.py`.

A mixture smoothed by noise has a closed-form denoiser. A network's output is added to it, zero at first, so that its
held-out error is never worse than the mixture's but by overfitting; early stopping on held-out latents takes care of
that. The gain in nats is the integral of the error's gain over noise levels (I-MMSE, Guo et al. 2005).

A net can follow the difference of two such denoisers, of the encodings and of its own draws, as in distribution
matching distillation (DMD2, arXiv 2405.14867): their scores' difference is the direction that `score_difference`
estimates with kernels, and the mixture's own part cancels.
"""

import copy
import itertools
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.directions.fields import Step
from ldcvae.rivals.fitting import Draw

__all__ = ["PASSES", "LearntDifference", "MixtureDenoiser", "corrected", "fit_residual", "flow"]

NOISE = (0.05, 5.0)  # standard deviations, in whitened coordinates
LEVELS = 12  # of noise at which the held-out error is taken
START, PASSES = 1.0, 29  # of the flow: noise added to the base's draws, evaluations of the denoiser
FOLLOWED, UPDATES = (0.1, 1.0), 2  # noise at which a net looks, and what its own denoiser learns before each look
_EMA, _WIDTH, _DEPTH = 0.995, 512, 3

Denoiser = Callable[[Tensor, Tensor], Tensor]


class MixtureDenoiser:
    """`E[u | u + σ ε = x]` for u of a Gaussian mixture.

    Example:
        >>> mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
        >>> MixtureDenoiser(mixture)(torch.ones(3, 2), torch.ones(3))[0]
        tensor([0.5000, 0.5000])
    """

    def __init__(self, mixture: GaussianMixture):
        self.means, self.log_weights = mixture.means, mixture.weights.log()
        values, vectors = torch.linalg.eigh(mixture.covariances.double())
        self.values = values.float().clamp(min=0.0)
        k, d = self.means.shape
        self.axes = vectors.float().permute(1, 0, 2).reshape(d, k * d).contiguous()
        self.offsets = torch.einsum("kd,kde->ke", self.means, vectors.float())

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(n, d) means of latents given noisy ones (n, d) and their noise (n,)."""
        y = (x @ self.axes).view(len(x), *self.values.shape) - self.offsets
        variance = self.values + sigma.square()[:, None, None]
        shares = (self.log_weights - 0.5 * (y.square() / variance + variance.log()).sum(2)).softmax(1)
        shrunk = shares[:, :, None] * y * (self.values / variance)
        return shares @ self.means + shrunk.flatten(1) @ self.axes.T


class _Residual(nn.Module):
    """What is added to the mixture's denoiser, in units of the noise that is left."""

    def __init__(self, dim: int):
        super().__init__()
        self.first = nn.Linear(2 * dim + 17, _WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH))
            for _ in range(_DEPTH)
        )
        self.last = nn.Linear(_WIDTH, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("frequencies", 2.0 ** torch.arange(-3, 5))

    def forward(self, x: Tensor, base: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.log()[:, None]
        scale = (1 + sigma.square()).rsqrt()[:, None]
        waves = level * self.frequencies
        moved = (base - x) * scale * (1 + 1 / sigma)[:, None]
        hidden = self.first(torch.cat([x * scale, moved, level, waves.sin(), waves.cos()], 1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden)


def _left(sigma: Tensor) -> Tensor:
    return (sigma * (1 + sigma.square()).rsqrt())[:, None]


def _noisy(u: Tensor, sigma: Tensor, noise: torch.Generator) -> Tensor:
    return u + sigma[:, None] * torch.randn(u.shape, generator=noise)


def _levels(count: int, bounds: tuple[float, float], noise: torch.Generator) -> Tensor:
    low, high = map(math.log, bounds)
    return (low + (high - low) * torch.rand(count, generator=noise)).exp()


def _loss(base: MixtureDenoiser, network: nn.Module, u: Tensor, noise: torch.Generator) -> Tensor:
    """Of latents (n, d) with noise of all levels, in units of the noise that is left."""
    sigma = _levels(len(u), NOISE, noise)
    x = _noisy(u, sigma, noise)
    start = base(x, sigma)
    return ((u - start) / _left(sigma) - network(x, start, sigma)).square().mean()


def corrected(base: MixtureDenoiser, network: nn.Module) -> Denoiser:
    """The mixture's denoiser with what a network adds to it."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        start = base(x, sigma)
        return start + _left(sigma) * network(x, start, sigma)

    return denoise


@torch.no_grad()
def _nats(better: Denoiser, base: Denoiser, held_out: Tensor) -> tuple[float, list[float]]:
    """By how much held-out latents (n, d) are likelier, and the error's share that is left at each level of noise."""
    low, high = map(math.log, NOISE)
    noise, gain, left = torch.Generator().manual_seed(5), 0.0, []
    for level in torch.linspace(low, high, LEVELS).exp():
        sigma = level.expand(len(held_out))
        x = _noisy(held_out, sigma, noise)
        before, after = ((one(x, sigma) - held_out).square().sum(1).mean() for one in (base, better))
        gain += float((before - after) / level**2) * (high - low) / (LEVELS - 1)
        left.append(round(float(after / before), 3))
    return gain, left


def fit_residual(
    base: MixtureDenoiser, draw: Draw, held_out: Tensor, steps: int, batch: int, seed: int
) -> tuple[nn.Module, float]:
    """What is added to the base's denoiser, and its gain in nats, at the step that held-out latents liked best."""
    torch.manual_seed(seed)
    network = _Residual(held_out.shape[1])
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    noise = torch.Generator().manual_seed(seed)

    best, kept = 0.0, copy.deepcopy(average)
    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        _loss(base, network, draw(batch, noise), noise).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            share = max(1 - _EMA, 1 / step)
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), share)
        if step % max(1, steps // 8) == 0:
            gain, left = _nats(corrected(base, average), base, held_out)
            print(f"step {step}: {gain:+.3f} nats, error left by level {left}", file=sys.stderr, flush=True)
            if gain > best:
                best, kept = gain, copy.deepcopy(average)
    return kept, best


class LearntDifference:
    """A direction: `D(x) - D'(x)`, denoisers of the encodings and of the net's own draws.

    The net's starts as the mixture's own, exact while the net does nothing, and learns from the particles of every
    step before it is asked. Rows are divided by how far the encodings' denoiser moves them (2405.14867).

    Args:
        base: of the mixture that the net starts from.
        teacher: what the encodings' denoiser adds to it.
        seed: of noise and weights.
    """

    def __init__(self, base: MixtureDenoiser, teacher: nn.Module, seed: int):
        self.base, self.teacher = base, teacher
        torch.manual_seed(seed)
        self.own = _Residual(len(base.axes))
        self.optimizer = torch.optim.AdamW(self.own.parameters(), lr=1e-3)
        self.noise = torch.Generator().manual_seed(seed)

    def __call__(self, step: Step) -> Tensor:
        """Directions (n, d) of rms 1 of a step's particles."""
        z = step.particles
        with torch.enable_grad():
            for _ in range(UPDATES):
                self.optimizer.zero_grad(set_to_none=True)
                _loss(self.base, self.own, z, self.noise).backward()
                self.optimizer.step()
        sigma = _levels(len(z), FOLLOWED, self.noise)
        x = _noisy(z, sigma, self.noise)
        start = self.base(x, sigma)
        truth, own = (_left(sigma) * network(x, start, sigma) for network in (self.teacher, self.own))
        found = (truth - own) / (z - start - truth).abs().mean(1, keepdim=True)
        return found / found.square().mean().sqrt().clamp(min=1e-12)


def flow(denoiser: Denoiser, base: Draw) -> Draw:
    """Draws of the probability flow from the base's draws with noise of `START`, by Heun's method (2206.00364)."""
    levels = torch.cat([torch.linspace(math.log(START), math.log(NOISE[0]), PASSES // 2 + 1).exp(), torch.zeros(1)])

    @torch.no_grad()
    def moved(x: Tensor) -> Tensor:
        for now, then in itertools.pairwise(levels):
            slope = (x - denoiser(x, now.expand(len(x)))) / now
            ahead = x + (then - now) * slope
            if then > 0:
                slope = 0.5 * (slope + (ahead - denoiser(ahead, then.expand(len(x)))) / then)
            x = x + (then - now) * slope
        return x

    def draw(n: int, noise: torch.Generator) -> Tensor:
        u = base(n, noise)
        x = _noisy(u, torch.full((n,), START), noise)
        return torch.cat([moved(part) for part in x.split(1000)])

    return draw
