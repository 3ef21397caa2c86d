"""The directions of phase 2 beside the bare products and exponentials of their size, and beside other people's SVGD.

Bare is what cannot be left out: for particles and targets one product for the distances, then for each bandwidth a
softmax and a weighted sum. Others are what people would write: a double broadcast (n, n, d), and SVGD by automatic
differentiation, as Pyro's `RBFSteinKernel` computes it: kernel matrix by broadcast, its gradient by autograd, the
score by autograd of the same mixture. Two bandwidths, one thread, medians of turns taken in one process.

    OMP_NUM_THREADS=1 python benchmarks/directions.py [--large]
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from bare import bare_direction, report
from torch import Tensor

from ldcvae import SamplerSettings
from ldcvae.directions.fields import Step
from ldcvae.training.heap import keep_freed_memory
from ldcvae.variants import DIRECTIONS

SIZES = ((256, 8), (1024, 16), (1024, 64), (4096, 128))
LARGE = ((16_384, 16), (16_384, 128))
NAMES = ("stein", "score_difference", "drift")
FLOOR, GOAL = 0.3, 2.0


def broadcast(particles: Tensor, targets: Tensor, widths: list[Tensor]) -> Tensor:
    """SVGD with (n, n, d) differences: the loop of tutorials, without the loop."""
    out = torch.zeros_like(particles)
    away = particles[:, None] - particles[None]
    squares = (away**2).sum(-1)
    to_targets = particles[:, None] - targets[None]
    weights = torch.softmax(-0.5 * (to_targets**2).sum(-1) / FLOOR**2, 1)
    score = -(weights[..., None] * to_targets).sum(1) / FLOOR**2
    for width in widths:
        kernel = torch.exp(-0.5 * squares / width**2)
        out += (kernel @ score + (kernel[..., None] * away).sum(1) / width**2) / len(particles)
    return out


def automatic(particles: Tensor, targets: Tensor, widths: list[Tensor]) -> Tensor:
    """SVGD with kernel gradients and score by autograd, as Pyro's SVGD does it."""
    out = torch.zeros_like(particles)
    leaf = particles.detach().requires_grad_()
    density = torch.logsumexp(-0.5 * torch.cdist(leaf, targets).square() / FLOOR**2, 1).sum()
    (score,) = torch.autograd.grad(density, leaf)
    for width in widths:
        norms = ((leaf[:, None] - particles[None]) ** 2).sum(-1)
        kernel = torch.exp(-0.5 * norms / width**2)
        (slope,) = torch.autograd.grad(kernel.sum(), leaf)
        out += (kernel.detach() @ score - slope) / len(particles)
    return out


def medians(works: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Milliseconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 3:
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(series[1:]) for name, series in times.items()}


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    print("ms; in brackets times bare\n\n| n | d | bare | " + " | ".join(NAMES) + " | double broadcast | autograd |")
    print("|---" * (5 + len(NAMES)) + "|")
    for n, dim in (*SIZES, *(LARGE if "--large" in arguments else ())):
        generator = torch.Generator().manual_seed(0)
        particles, targets = (torch.randn(n, dim, generator=generator) for _ in range(2))
        widths = [torch.tensor(width * dim**0.5) for width in (0.3, 0.8)]
        works: dict[str, Callable[[], object]] = {"bare": lambda: bare_direction(particles, targets, widths)}  # noqa: B023
        for name in NAMES:
            step = Step(particles, targets, widths, FLOOR, SamplerSettings(direction=name, particles=max(4, n)))
            works[name] = lambda step=step, name=name: DIRECTIONS.find(name).field(step)
        found = medians(works, 4.0)
        if n <= 1024:  # apart, since their (n, n, d) tensors move the heap under those of the others
            peers = {"broadcast": broadcast, "autograd": automatic}
            found |= medians({name: lambda of=of: of(particles, targets, widths) for name, of in peers.items()}, 3.0)  # noqa: B023
        least = found["bare"]
        cells = [f"{found[name]:,.1f} ({found[name] / least:.1f})" if name in found else "–"
                 for name in (*NAMES, "broadcast", "autograd")]  # fmt: skip
        print(f"| {n:,} | {dim} | {least:,.1f} | {' | '.join(cells)} |", flush=True)
        for name in NAMES:
            report(f"{name} / bare products, n = {n:,}, d = {dim}", found[name] / least, "lower", GOAL)
        if "broadcast" in found:
            report(f"double broadcast / stein, n = {n:,}, d = {dim}", found["broadcast"] / found["stein"], "higher")
            report(f"autograd SVGD / stein, n = {n:,}, d = {dim}", found["autograd"] / found["stein"], "higher")


if __name__ == "__main__":
    main(sys.argv[1:])
