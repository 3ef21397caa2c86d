"""What phase `decoder` gained in finished runs: the same latents, decoded as before it and as after it, on test.

Each run is a seed of one configuration; the table has means and standard deviations over them, one draw of
`evaluate.num_images` a row, by two extractors: the classifier of the data, and convolutions that have learnt nothing.
And whether there is a grid: the power of waves of 2 and 4 pixels, which layers of stride 2 may leave, over that of
their neighbours in the spectrum, beside the same of real images.

    OMP_NUM_THREADS=2 python benchmarks/decoder_gain.py runs/fashion-0 runs/fashion-1 runs/fashion-2
"""

import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from autoencoder_search import judged, judges_of
from for_docs import opened
from torch import Tensor

from ldcvae.losses import as_float
from ldcvae.training.encode import encode_split
from pipeline.store.data.splits import split_images
from pipeline.store.model import load_before, load_model

ROWS = {
    "base": "the sampler's base",
    "net": "sampler net",
    "bound": "encoder, the bound",
    "held_out": "encoder, validation images",
    "reconstruction": "reconstructions",
}
WHEN = ("before", "after")
GRID = 2000  # images whose spectrum is taken
COLUMNS = ("fd", "kid", "precision", "recall", "density", "coverage", "mse")


def grid(images: Tensor) -> float:
    """The most that waves of 2 or 4 pixels, along either axis, stand out of their neighbours in power; 1: not at all.

    Args:
        images: (N, C, H, W) in [0, 1], H and W divisible by 4.

    Example:
        >>> noise = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        >>> stripes = torch.arange(28) % 2 * 0.1
        >>> round(grid(noise), 1), grid(noise + stripes) > 2
        (1.0, True)
    """
    power = torch.fft.fft2(images - images.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))
    found = []
    for line in (power.sum(0), power.sum(1)):
        half, quarter = len(line) // 2, len(line) // 4
        found += [line[half] / line[half - 1], 2 * line[quarter] / (line[quarter - 1] + line[quarter + 1])]
    return float(max(found))


def figures_of(folder: str) -> dict[str, dict[str, Any]]:
    """before and after -> extractor -> row -> figures, of one run."""
    run = opened(Path(folder))
    config = run.config
    after = load_model(run)
    before = load_before(run, after)
    if before is None:
        sys.exit(f"{folder} was trained without phase decoder")
    test = split_images(run, "test")
    bounds = {"bound": "train", "held_out": "validation"}
    encodings = {row: encode_split(after, split_images(run, split)) for row, split in bounds.items()}
    judges = {judge.extractor.figure: judge for judge in judges_of(run, test).values()}
    count = config.evaluate.num_images
    models = {"before": before, "after": after}
    found: dict[str, Any] = {"real": {"grid": grid(as_float(test[:GRID]))}}
    for when, model in models.items():
        drawn = model.sample(GRID, generator=torch.Generator().manual_seed(config.seed))
        figures = judged(model, encodings, test, count, config.seed, judges)
        found[when] = {"grid": grid(drawn), "figures": figures}
    return found


def main(folders: list[str]) -> None:
    if not folders:
        sys.exit(__doc__)
    runs = []
    for folder in folders:
        runs.append(figures_of(folder))
        print(f"{folder}: {runs[-1]['after']}", file=sys.stderr, flush=True)
    for figure in runs[0]["before"]["figures"]:
        heading = f"| latents | decoder | {' | '.join(COLUMNS)} |\n|{'---|' * (2 + len(COLUMNS))}"
        print(f"\n{figure}, {len(runs)} runs\n\n{heading}")
        for row, title in ROWS.items():
            for when in WHEN:
                found, cells = [run[when]["figures"][figure][row] for run in runs], []
                for column in COLUMNS:
                    values = [one[column] for one in found if column in one]
                    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
                    cells.append(f"{statistics.fmean(values):.4g}{spread}" if values else "–")
                print(f"| {title} | {when} | {' | '.join(cells)} |")
    errors = [[next(iter(run[when]["figures"].values()))["reconstruction"]["mse"] for when in WHEN] for run in runs]
    ratios = ", ".join(f"{after / before:.3f}" for before, after in errors)
    print(f"\nMSE of reconstructions, after over before: {ratios}")
    grids = {when: ", ".join(f"{run[when]['grid']:.2f}" for run in runs) for when in ("real", *WHEN)}
    print("Grid: " + "; ".join(f"{when} {values}" for when, values in grids.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
