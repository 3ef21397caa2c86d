"""Where raising d stops paying: the generators of every autoencoder that a search has left, judged on test images.

Reads a folder of `autoencoder_search.py`. Every row's latents are decoded by the decoder as phase 1 left it and by
those trained on from it. Flow matching and MeanFlow get as many steps as the sampler net's whole training, its base
included, has seconds for; from the base, whose fit takes its share, flow matching gets the sampler's number of steps.
Rows that are done are kept.

    export OMP_NUM_THREADS=1
    python benchmarks/autoencoder_search.py --config configs/fashion_mnist.yaml --folder runs/curve \\
        --set model.latent_dim=16,32,64,128 --decoder decoder.adversarial=5
    python benchmarks/latent_dimension.py runs/curve --config configs/fashion_mnist.yaml
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from autoencoder_search import WORLD, judges_of, opened

from ldcvae import LDCVAE, Encodings
from ldcvae.rivals.fitting import Budget, Draw, Fitting
from ldcvae.training.encode import encode_split
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.world import keyed_generator
from ldcvae.variants import GENERATORS
from pipeline.judge.figures import Judge, decoded
from pipeline.store.data.splits import split_images
from pipeline.store.run import Run

ROWS = {
    "gaussian": "Gaussian fit",
    "gmm_100": "GMM(100)",
    "base": "the sampler's base",
    "flow_matching": "flow matching, 50 passes",
    "flow_matching_from_base": "flow matching from the base, 50 passes",
    "mean_flow": "MeanFlow, one pass",
    "sampler": "sampler net, one pass",
    "encoder": "encoder, the bound",
    "held_out": "encoder, validation images",
}
PROBE = 30  # steps by which a learnt rival is timed
COLUMNS = ("fd", "precision", "recall", "coverage")


def draw_of(row: str, model: LDCVAE, splits: dict[str, Encodings], run: Run, seconds: float) -> tuple[Draw, float]:
    """A row's draw, and what fitting it took."""
    if row == "base":
        return lambda n, noise: model.whitening.unwhiten(model.draw_base(n, noise)), 0.0
    name = "gmm_tuned" if row == "gmm_100" else row
    settings = run.config.sampler

    def fitted(steps: int) -> tuple[Draw, float]:
        budget = Budget(sampler=replace(settings, steps=steps))
        setting = 100.0 if row == "gmm_100" else None
        started = time.perf_counter()
        fitting = Fitting(name, model, splits["train"], splits["validation"], None, setting, budget, run.config.seed)
        return GENERATORS[name].fit(fitting), time.perf_counter() - started

    steps = settings.steps
    if GENERATORS[name].kind == "learnt" and row != "flow_matching_from_base":
        fitted(2)
        steps = max(PROBE, round(PROBE * seconds / fitted(PROBE)[1]))
    return fitted(steps)


def judge_row(
    row: str, draw: Draw, decoders: dict[str, LDCVAE], judges: dict[str, Judge], run: Run, draws: int
) -> dict[str, Any]:
    """decoder -> extractor -> figure -> values over the draws."""
    found: dict[str, Any] = {which: {name: {} for name in judges} for which in decoders}
    for number in range(draws):
        with torch.no_grad():
            latents = draw(run.config.evaluate.num_images, keyed_generator("cpu", run.config.seed, row, number))
        for which, model in decoders.items():
            for name, judge in judges.items():
                figures = judge.figures(judge.extractor.of(decoded(model, latents)))
                for key, value in figures.items():
                    found[which][name].setdefault(key, []).append(value)
    return found


def judge_autoencoder(
    where: Path, run: Run, judges: dict[str, Judge], images: dict[str, Any], rows: list[str], draws: int
) -> None:
    kept = json.loads((where / "record.json").read_text())
    record = where / "rivals.json"
    done: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    decoders = {"none": LDCVAE.from_pretrained(where)}
    decoders |= {
        one.name: LDCVAE.from_pretrained(one)
        for one in sorted(where.glob("decoder-*"))
        if (one / "config.json").exists()
    }
    model = decoders["none"]
    splits = {split: encode_split(model, images[split], WORLD) for split in ("train", "validation")}
    for row in rows:
        if row not in done:
            draw, seconds = draw_of(row, model, splits, run, kept["seconds"]["sampler"])
            done[row] = {"seconds": seconds, "figures": judge_row(row, draw, decoders, judges, run, draws)}
            record.write_text(json.dumps(done))
            print(f"d = {model.config.latent_dim}, {row}: {brief(done[row])}", flush=True)


def spread_of(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def brief(found: dict[str, Any]) -> str:
    cells = [f"{seconds:.0f} s" if (seconds := found["seconds"]) else ""]
    for which, judged in found["figures"].items():
        values = judged["classifier"]["fd"]
        cells.append(f"{which} {statistics.fmean(values):.2f} ± {spread_of(values):.2f}")
    return ", ".join(filter(None, cells))


def table(folder: Path) -> None:
    """One table a decoder and extractor: rows against d."""
    found = {}
    for record in folder.glob("ae-*/rivals.json"):
        config = json.loads((record.parent / "config.json").read_text())
        found[config["latent_dim"]] = json.loads(record.read_text())
    dims = sorted(found)
    judgements = {
        which: list(judged)
        for rows in found.values()
        for row in rows.values()
        for which, judged in row["figures"].items()
    }
    for which, judged in judgements.items():
        for extractor in judged:
            heading = f"| latents | {' | '.join(f'd = {d}' for d in dims)} |\n|{'---|' * (1 + len(dims))}"
            print(f"\n{which}, {extractor}\n\n{heading}")
            for row, title in ROWS.items():
                cells = []
                for d in dims:
                    figures = found[d].get(row, {}).get("figures", {}).get(which)
                    cells.append(cell(figures[extractor]) if figures else "–")
                print(f"| {title} | {' | '.join(cells)} |")


def cell(figures: dict[str, list[float]]) -> str:
    means = {key: statistics.fmean(figures[key]) for key in COLUMNS}
    rest = " ".join(f"{means[key]:.3f}"[1:] for key in COLUMNS[1:])
    return f"{means['fd']:.4g} ± {spread_of(figures['fd']):.2g} ({rest})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--config")
    parser.add_argument("--dims", type=int, nargs="*", help="those with such d, in this order; all if left out")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what is done and stop")
    arguments = parser.parse_args()
    if arguments.table:
        return table(Path(arguments.folder))
    keep_freed_memory()
    run = opened(arguments, [])
    images = {split: split_images(run, split) for split in ("train", "validation", "test")}  # type: ignore[misc]
    judges = judges_of(run, images["test"])
    found = {}
    for record in sorted(Path(arguments.folder).glob("ae-*/record.json")):
        found[json.loads((record.parent / "config.json").read_text())["latent_dim"]] = record.parent
    for dim in arguments.dims or sorted(found):
        judge_autoencoder(found[dim], run, judges, images, arguments.rows, arguments.draws)
    return table(Path(arguments.folder))


if __name__ == "__main__":
    main()
