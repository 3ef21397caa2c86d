"""A step of SVGD beside blackjax's and beside Pyro's way, on the same particles, target and kernel, in turns.

The target is a mixture of n Gaussians, one kernel bandwidth; a step is score, direction and a move of every particle.
blackjax (Cabezas et al. 2024) is JAX, compiled by XLA with one thread; ours is `ldcvae.stein_direction` with the score
of `KernelMixture`; automatic differentiation of the kernel matrix is Pyro's way, in PyTorch. That the three compute
the same is checked first.

    python -m venv .venv-jax && .venv-jax/bin/pip install -c requirements.lock torch blackjax scikit-learn safetensors huggingface_hub
    PYTHONPATH=.:benchmarks .venv-jax/bin/python benchmarks/peers/svgd_speed.py
"""  # noqa: E501

import os
from collections.abc import Callable

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from bare import report
from blackjax.vi import svgd
from directions import automatic, medians

from ldcvae import stein_direction
from ldcvae.densities import KernelMixture
from ldcvae.training.heap import keep_freed_memory

SIZES = ((256, 8), (1024, 16), (1024, 64), (4096, 64))
FLOOR, RATE = 0.3, 0.1  # kernels of the target; of a step


def blackjax_step(particles: np.ndarray, targets: np.ndarray, width: float) -> Callable[[], jax.Array]:
    """A step of blackjax's SVGD, compiled."""
    centres = jnp.asarray(targets)

    def log_density(z: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(-0.5 * ((z - centres) ** 2).sum(-1) / FLOOR**2)

    # Its kernel is exp(-|x - y|² / length_scale).
    algorithm = svgd.as_top_level_api(jax.grad(log_density), optax.sgd(RATE), svgd.rbf_kernel, lambda state: state)
    state = algorithm.init(jnp.asarray(particles), {"length_scale": 2.0 * width**2})
    step = jax.jit(algorithm.step)
    return lambda: step(state).particles.block_until_ready()


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    print("ms a step; in brackets times ours\n\n| n | d | ours | blackjax | autograd |\n|---|---|---|---|---|")
    for n, dim in SIZES:
        noise = torch.Generator().manual_seed(0)
        particles, targets = (torch.randn(n, dim, generator=noise) for _ in range(2))
        width = torch.tensor(0.5 * dim**0.5)
        target = KernelMixture(targets, floor=FLOOR)
        theirs = blackjax_step(particles.numpy(), targets.numpy(), float(width))

        def ours() -> torch.Tensor:
            direction = stein_direction(particles, target.score(particles), [width])  # noqa: B023
            return particles + RATE * direction  # noqa: B023

        def pyro() -> torch.Tensor:
            return particles + RATE * automatic(particles, targets, [width])  # noqa: B023

        works: dict[str, Callable[[], object]] = {"ours": ours, "blackjax": theirs}
        if n * n * dim <= 2**26:
            works["autograd"] = pyro
        for name, work in works.items():
            gap = float(np.abs(np.asarray(work()) - ours().numpy()).max())
            assert gap < 1e-4, f"{name} differs by {gap}"
        found = medians(works, 6.0)
        least = found["ours"]
        cells = [
            f"{found[name]:,.1f} ({found[name] / least:.1f})" if name in found else "–"
            for name in ("blackjax", "autograd")
        ]
        print(f"| {n:,} | {dim} | {least:,.1f} | {' | '.join(cells)} |", flush=True)
        report(f"blackjax SVGD / stein, n = {n:,}, d = {dim}", found["blackjax"] / least, "higher")


if __name__ == "__main__":
    main()
