"""What phase `decoder` gained in finished runs: the same latents, decoded as before it and as after it, on test.

Each run is a seed of one configuration; the table has means and standard deviations over them, one draw of
`evaluate.num_images` a row, by two extractors: the classifier of the data, and convolutions that have learnt nothing.

    OMP_NUM_THREADS=2 python benchmarks/decoder_gain.py runs/fashion-0 runs/fashion-1 runs/fashion-2
"""

import statistics
import sys
from typing import Any

from autoencoder_search import WORLD, judged

from pipeline.config.load import load_config
from pipeline.judge.extractors import build_extractor
from pipeline.judge.figures import Judge
from pipeline.store.data.splits import split_images
from pipeline.store.model import load_before, load_model
from pipeline.store.run import open_run

ROWS = {
    "base": "the sampler's base",
    "net": "sampler net",
    "bound": "encoder, the bound",
    "reconstruction": "reconstructions",
}
COLUMNS = ("fd", "kid", "precision", "recall", "density", "coverage", "mse")


def figures_of(folder: str) -> dict[str, dict[str, Any]]:
    """before and after -> extractor -> row -> figures, of one run."""
    storage, _, name = folder.rstrip("/").rpartition("/")
    place = [f"storage={storage or '.'}", f"name={name}"]
    config = load_config(f"{folder}/config.yaml", place)
    run = open_run(config)
    after = load_model(run)
    before = load_before(run, after)
    if before is None:
        sys.exit(f"{folder} was trained without phase decoder")
    train, test = split_images(run, "train"), split_images(run, "test")
    judges = {}
    for kind in ("classifier", "random"):
        extractor = build_extractor(
            open_run(load_config(f"{folder}/config.yaml", [*place, f"evaluate.extractor={kind}"]))
        )
        judges[extractor.figure] = Judge(extractor, extractor(test), config.evaluate.neighbours, WORLD.device)
    count = config.evaluate.num_images
    models = {"before": before, "after": after}
    return {when: judged(model, train, test, count, config.seed, judges) for when, model in models.items()}


def main(folders: list[str]) -> None:
    if not folders:
        sys.exit(__doc__)
    runs = []
    for folder in folders:
        runs.append(figures_of(folder))
        print(f"{folder}: {runs[-1]['after']}", file=sys.stderr, flush=True)
    for figure in runs[0]["before"]:
        heading = f"| latents | decoder | {' | '.join(COLUMNS)} |\n|{'---|' * (2 + len(COLUMNS))}"
        print(f"\n{figure}, {len(runs)} runs\n\n{heading}")
        for row, title in ROWS.items():
            for when in ("before", "after"):
                cells = []
                for column in COLUMNS:
                    values = [run[when][figure][row][column] for run in runs if column in run[when][figure][row]]
                    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
                    cells.append(f"{statistics.fmean(values):.4g}{spread}" if values else "–")
                print(f"| {title} | {when} | {' | '.join(cells)} |")
    ratios = [
        run["after"][figure]["reconstruction"]["mse"] / run["before"][figure]["reconstruction"]["mse"]
        for run in runs
        for figure in list(run["before"])[:1]
    ]
    print(f"\nMSE of reconstructions, after over before: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main(sys.argv[1:])
