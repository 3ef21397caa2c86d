"""Peak memory and CPU seconds of each direction of phase 2: all pairs at once (dense) against blocks of queries.

    python benchmarks/direction_memory.py [--large] [--dense-gib 8]

n particles, d = 16, three bandwidths, float32, each in a process of its own on one thread. "Dense" is the same
formula in a single block, to the bit the reference of `tests/ldcvae/test_blocks.py`. What would need more than
`--dense-gib` is not run: its memory is then computed from the matrices alive at once, and marked with ≈. `--large`
adds 65,536 particles, which take minutes each.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from ldcvae.densities.kernel_mixture import KernelMixture
from ldcvae.directions import blocks
from ldcvae.directions.stein import stein_direction
from ldcvae.directions.two_sample import drift, score_difference

DIMENSION, BANDWIDTHS = 16, [0.5, 1.0, 2.0]
# (n, n) matrices that the formula needs at the same time, with all pairs at once.
MATRICES = {"stein": 6, "score_difference": 5, "score_difference, smooth": 5, "drift": 8}


def resident(key: str) -> float:
    """A figure of this process in MiB; VmHWM and not getrusage, whose peak includes that of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def measure(name: str, n: int, dense: bool) -> None:
    """One direction once, in this process; prints by how much that raised its peak, and its CPU time."""
    torch.set_num_threads(1)
    if dense:
        blocks.BLOCK_BYTES = 2**60
    z, y = torch.randn(2, n, DIMENSION, generator=torch.Generator().manual_seed(0))
    directions = {
        "stein": lambda z, y: stein_direction(
            z, KernelMixture(y, floor=0.5).score(z), BANDWIDTHS, self_term=False, normalise=True
        ),
        "score_difference": lambda z, y: score_difference(z, y, BANDWIDTHS),
        "score_difference, smooth": lambda z, y: score_difference(z, y, BANDWIDTHS, smooth=True),
        "drift": lambda z, y: drift(z, y, BANDWIDTHS),
    }
    with torch.no_grad():
        directions[name](z[:64], y[:64])
        before, started = resident("VmHWM"), time.process_time()
        directions[name](z, y)
    print(json.dumps([resident("VmHWM") - before, time.process_time() - started]))


def cell(name: str, n: int, dense: bool, limit_gib: float) -> str:
    gib = MATRICES[name] * n * n * 4 / 2**30
    if dense and gib > limit_gib:
        return f"≈ {gib * 1024:,.0f} MiB, not run"
    command = [sys.executable, __file__, "--measure", name, str(n), str(int(dense))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    mib, seconds = json.loads(done.stdout)
    return f"{mib:,.0f} MiB, {seconds:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="65,536 particles too")
    parser.add_argument("--dense-gib", type=float, default=8.0, help="most memory of a dense run")
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "N", "DENSE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        name, n, dense = asked.measure
        measure(name, int(n), bool(int(dense)))
        return
    print("| direction | n | dense | by blocks |\n|---|---|---|---|", flush=True)
    for n in (4096, 16384, 65536) if asked.large else (4096, 16384):
        for name in MATRICES:
            cells = [cell(name, n, dense, asked.dense_gib) for dense in (True, False)]
            print(f"| {name} | {n:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
