"""What judging costs beside its bare matrix products: precision, recall, density and coverage; KID.

All pairs of generated and real images are compared. Bare is what cannot be left out, in float64 as the figures are
computed in: for the first four the products of generated with generated and with real features (those of real ones
with themselves are made once for all draws), for KID the same products and their cubes. One thread, 5,000 images a
side, 128 features, medians of turns taken in one process.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py
"""

from collections.abc import Callable

import torch
from bare import report
from directions import medians
from torch import Tensor

from ldcvae.metrics.images import frechet_distance, kid, kid_within
from ldcvae.metrics.neighbours import ball_radii, prdc

IMAGES, FEATURES, NEIGHBOURS, GOAL = 5000, 128, 5, 2.0
BLOCK = 512  # rows and columns


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    real, drawn = (torch.randn(IMAGES, FEATURES, generator=generator) for _ in range(2))
    radii, within = ball_radii(real, NEIGHBOURS), kid_within(real)
    exact = real.double(), drawn.double()

    def bare(of: Callable[[Tensor], Tensor]) -> float:
        """Of the products of drawn features with all, in blocks that stay in the cache."""
        parts = [
            of(rows @ columns.T) for rows in exact[1].split(BLOCK) for one in exact for columns in one.split(BLOCK)
        ]
        return float(torch.stack(parts).sum())

    found = medians(
        {
            "products": lambda: bare(Tensor.amax),
            "precision, recall, density, coverage": lambda: prdc(real, drawn, NEIGHBOURS, radii=radii),
            "cubes": lambda: bare(lambda products: ((products / FEATURES + 1.0) ** 3).sum()),
            "KID": lambda: kid(drawn, real, within=within),
            "Fréchet distance": lambda: frechet_distance(drawn, real),
        },
        20.0,
    )
    for name, least in (("precision, recall, density, coverage", "products"), ("KID", "cubes")):
        ratio = found[name] / found[least]
        print(f"{name}: {found[name]:,.0f} ms, bare {least} {found[least]:,.0f} ms, ratio {ratio:.2f}; goal {GOAL:g}")
        report(f"{name} / bare {least}", ratio, "lower", GOAL)
    print(f"Fréchet distance: {found['Fréchet distance']:,.0f} ms")


if __name__ == "__main__":
    main()
