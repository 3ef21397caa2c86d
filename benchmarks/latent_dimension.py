"""Where raising d stops paying: the generators of every autoencoder that a search has left, judged on test images.

Reads a folder of `autoencoder_search.py`. Every row's latents are decoded by the decoder as phase 1 left it and by
those trained on from it. Flow matching and MeanFlow get as many steps as the sampler net's whole training, its base
included, has seconds for; from the base, whose fit takes its share, flow matching gets the sampler's number of steps.
Where the base's components have several centres, a base of one each and the net from it show what those are worth.
Rows that are done are kept. `base@1.2`, `sampler@1.2` and `flow_matching@1.2` draw at that temperature from the same
noise; which one is chosen on validation images (`--split validation`, kept in a file of its own). A rival is fitted
once for all its temperatures.

    export OMP_NUM_THREADS=1
    python benchmarks/autoencoder_search.py --config configs/fashion_mnist.yaml --folder runs/curve \\
        --set model.latent_dim=16,32,64,128 --decoder decoder.adversarial=5
    python benchmarks/latent_dimension.py runs/curve --config configs/fashion_mnist.yaml
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from autoencoder_search import WORLD, judges_of, loaded, opened

from ldcvae import LDCVAE, Encodings
from ldcvae.rivals.fitting import Budget, Draw, Fitting, at_temperature
from ldcvae.training.encode import encode_split
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.world import keyed_generator
from ldcvae.variants import GENERATORS
from pipeline.judge.figures import Judge, decoded
from pipeline.store.data.splits import split_images
from pipeline.store.run import Run

ROWS = {
    "prior": "N(0, I)",
    "gaussian": "Gaussian fit",
    "gmm_100": "GMM(100)",
    "plain_base": "the sampler's base, one centre a component",
    "plain_sampler": "sampler net from it",
    "base": "the sampler's base",
    "flow_matching": "flow matching, 50 passes",
    "flow_matching_from_base": "flow matching from the base, 50 passes",
    "mean_flow": "MeanFlow, one pass",
    "sampler": "sampler net, one pass",
    "encoder": "encoder, the bound",
    "held_out": "encoder, validation images",
}
TEMPERED = ("base", "sampler", "flow_matching")
KEPT = {"test": "rivals.json", "validation": "rivals-validation.json"}
PROBE = 30  # steps by which a learnt rival is timed
COLUMNS = ("fd", "precision", "recall", "coverage")


def synchronised() -> float:
    """The time, once the device has done what it was given."""
    if WORLD.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def draw_of(
    row: str, model: LDCVAE, splits: dict[str, Encodings], run: Run, seconds: float, rival_steps: int | None
) -> tuple[Draw, float]:
    """A row's draw, and what fitting it took; a learnt rival gets so many steps, or as many as the seconds allow."""
    if row == "base":
        return lambda n, noise, *degree: model.whitening.unwhiten(model.draw_base(n, noise, *degree)), 0.0
    settings = run.config.sampler
    name = {"gmm_100": "gmm_tuned", "plain_base": "gmm_tuned", "plain_sampler": settings.direction}.get(row, row)
    components = {"gmm_100": 100.0, "plain_base": float(settings.base_components)}
    if row == "plain_sampler":
        settings = replace(settings, base_centres=1, base_spread=1.0)

    def fitted(steps: int) -> tuple[Draw, float]:
        budget = Budget(sampler=replace(settings, steps=steps))
        setting, seed = components.get(row), run.config.seed
        started = synchronised()
        fitting = Fitting(name, model, splits["train"], splits["validation"], None, setting, budget, seed)
        return GENERATORS[name].fit(fitting), synchronised() - started

    steps = settings.steps
    if GENERATORS[name].kind == "learnt" and row != "flow_matching_from_base":
        steps = rival_steps or steps_in(seconds, fitted)
        print(f"{row}: {steps:,} steps", flush=True)
    return fitted(steps)


def steps_in(seconds: float, fitted: Callable[[int], tuple[Draw, float]]) -> int:
    """So many steps take so long, by a probe."""
    fitted(2)
    return max(PROBE, round(PROBE * seconds / fitted(PROBE)[1]))


def judge_row(
    row: str, draw: Draw, decoders: dict[str, LDCVAE], judges: dict[str, Judge], run: Run, draws: int
) -> dict[str, Any]:
    """Seconds of a draw (the last), and decoder -> extractor -> figure -> values over the draws."""
    found: dict[str, Any] = {which: {name: {} for name in judges} for which in decoders}
    seconds = 0.0
    for number in range(draws):
        noise = keyed_generator(WORLD.device, run.config.seed, row.partition("@")[0], number)
        started = synchronised()
        with torch.no_grad():
            latents = draw(run.config.evaluate.num_images, noise)
        seconds = synchronised() - started
        for which, model in decoders.items():
            for name, judge in judges.items():
                figures = judge.figures(judge.extractor.of(decoded(model, latents)))
                for key, value in figures.items():
                    found[which][name].setdefault(key, []).append(value)
    return {"draw_seconds": seconds, "figures": found}


def judge_autoencoder(
    where: Path, run: Run, judges: dict[str, Judge], images: dict[str, Any], arguments: argparse.Namespace
) -> None:
    kept = json.loads((where / "record.json").read_text())
    record = where / KEPT[arguments.split]
    done: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    decoders = {"none": loaded(where)}
    decoders |= {one.name: loaded(one) for one in sorted(where.glob("decoder-*")) if (one / "config.json").exists()}
    model = decoders["none"]
    splits = {split: encode_split(model, images[split], WORLD) for split in ("train", "validation")}
    # With one centre a component they are base and sampler themselves.
    same = () if model.config.base_centres > 1 else ("plain_base", "plain_sampler")
    fitted: dict[str, tuple[Draw, float]] = {}
    for row in arguments.rows:
        if row not in done and row not in same:
            name, _, degree = row.partition("@")
            if name not in fitted:
                own = kept["seconds"]["sampler"]
                fitted[name] = draw_of(name, model, splits, run, own, arguments.rival_steps)
            draw, seconds = fitted[name]
            draw = at_temperature(draw, float(degree)) if degree else draw
            done[row] = {"seconds": seconds} | judge_row(row, draw, decoders, judges, run, arguments.draws)
            record.write_text(json.dumps(done))
            words = f"d = {model.config.latent_dim}, seed {run.config.seed}, {row}: {brief(done[row])}"
            print(words, flush=True)


def spread_of(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def brief(found: dict[str, Any]) -> str:
    cells = [f"{seconds:.0f} s" if (seconds := found["seconds"]) else ""]
    for which, judged in found["figures"].items():
        values = judged["classifier"]["fd"]
        cells.append(f"{which} {statistics.fmean(values):.2f} ± {spread_of(values):.2f}")
    return ", ".join(filter(None, cells))


def autoencoders(folder: Path) -> dict[tuple[int, int], Path]:
    """(d, seed) -> where it lies."""
    found: dict[tuple[int, int], Path] = {}
    for record in sorted(folder.glob("ae-*/record.json")):
        dim = json.loads((record.parent / "config.json").read_text())["latent_dim"]
        key = dim, json.loads(record.read_text()).get("seed", 0)
        if key in found:
            both = f"{found[key].name} and {record.parent.name}"
            raise SystemExit(f"error: {both} have d = {dim} and seed {key[1]}: a folder for each")
        found[key] = record.parent
    return found


def title_of(row: str) -> str:
    """A row in words.

    Example:
        >>> title_of("sampler@1.2")
        'sampler net, one pass, at temperature 1.2'
    """
    name, _, degree = row.partition("@")
    return ROWS[name] + (f", at temperature {degree}" if degree else "")


def known(row: str) -> str:
    """A row's name, as an argument.

    Raises:
        argparse.ArgumentTypeError: naming those there are.
    """
    name, _, degree = row.partition("@")
    if name not in ROWS or (degree and name not in TEMPERED):
        ends = ", ".join(f"{name}@T" for name in TEMPERED)
        raise argparse.ArgumentTypeError(f"{row!r} is none of {', '.join(ROWS)}, {ends}")
    return row


def table(folder: Path, split: str) -> None:
    """One table a decoder and extractor: rows against d, with the spread over seeds, of one seed over its draws.

    Under each row how far the net is ahead of it by Fréchet distance: mean and standard error of pairs by seed.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for (dim, _), where in sorted(autoencoders(folder).items()):
        if (where / KEPT[split]).exists():
            found.setdefault(dim, []).append(json.loads((where / KEPT[split]).read_text()))
    rows = list(dict.fromkeys(row for records in found.values() for record in records for row in record))
    order = list(ROWS)
    rows.sort(key=lambda row: order.index(row.partition("@")[0]))
    judgements = {
        which: list(judged)
        for records in found.values()
        for record in records
        for row in record.values()
        for which, judged in row["figures"].items()
    }
    for which, judged in judgements.items():
        for extractor in judged:
            heads = (f"d = {dim}, {len(records)} seed{'s' * (len(records) > 1)}" for dim, records in found.items())
            print(f"\n{which}, {extractor}\n\n| latents | {' | '.join(heads)} |\n|{'---|' * (1 + len(found))}")
            for row in rows:
                cells = [cell(records, row, which, extractor) for records in found.values()]
                print(f"| {title_of(row)} | {' | '.join(cells)} |")


def as_csv(folder: Path, split: str) -> str:
    """A line for each d, seed, decoder, extractor, row and draw."""
    lines = ["d,seed,decoder,extractor,latents,draw,fd,kid,precision,recall,density,coverage"]
    for (dim, seed), where in sorted(autoencoders(folder).items()):
        kept = where / KEPT[split]
        record = json.loads(kept.read_text()) if kept.exists() else {}
        for row, found in record.items():
            for which, judged in found["figures"].items():
                for extractor, figures in judged.items():
                    names = lines[0].split(",")[6:]
                    for draw, values in enumerate(zip(*(figures[name] for name in names), strict=True)):
                        about = f"{dim},{seed},{which.partition('-')[0]},{extractor},{row},{draw}"
                        lines.append(about + "".join(f",{value:.6g}" for value in values))
    return "\n".join(lines) + "\n"


def of_row(record: dict[str, Any], row: str, which: str, extractor: str) -> dict[str, list[float]] | None:
    """figure -> values over draws, of one autoencoder; None if it was not judged."""
    return record.get(row, {}).get("figures", {}).get(which, {}).get(extractor)


def cell(records: list[dict[str, Any]], row: str, which: str, extractor: str) -> str:
    judged = [figures for record in records if (figures := of_row(record, row, which, extractor))]
    if not judged:
        return "–"
    means = {key: [statistics.fmean(figures[key]) for figures in judged] for key in COLUMNS}
    spread = spread_of(means["fd"]) if len(judged) > 1 else spread_of(judged[0]["fd"])
    rest = " ".join(f"{statistics.fmean(means[key]):.3f}"[1:] for key in COLUMNS[1:])
    text = f"{statistics.fmean(means['fd']):.4g} ± {spread:.2g} ({rest})"
    nets = [
        (of_row(record, "sampler", which, extractor), of_row(record, row, which, extractor)) for record in records
    ]
    ahead = [statistics.fmean(other["fd"]) - statistics.fmean(net["fd"]) for net, other in nets if net and other]
    if row != "sampler" and len(ahead) > 1:
        text += f"; {statistics.fmean(ahead):+.3g} ± {spread_of(ahead) / len(ahead) ** 0.5:.2g}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--config")
    parser.add_argument("--dims", type=int, nargs="*", help="those with such d, in this order; all if left out")
    parser.add_argument("--seeds", type=int, nargs="*", help="those; all if left out")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), type=known)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument(
        "--rival-steps", type=int, help="of flow matching and MeanFlow, in place of the net's seconds"
    )
    parser.add_argument("--split", choices=KEPT, default="test", help="whose images are judged by")
    parser.add_argument("--csv", action="store_true", help="print every draw's figures and stop")
    parser.add_argument("--table", action="store_true", help="print what is done and stop")
    arguments = parser.parse_args()
    if arguments.csv:
        return print(as_csv(Path(arguments.folder), arguments.split), end="")
    if arguments.table:
        return table(Path(arguments.folder), arguments.split)
    keep_freed_memory()
    run = opened(arguments, [])
    images = {split: split_images(run, split) for split in ("train", "validation", "test")}  # type: ignore[misc]
    judges = judges_of(run, images[arguments.split])
    found = autoencoders(Path(arguments.folder))
    dims = arguments.dims or sorted({dim for dim, _ in found})
    seeds = arguments.seeds or sorted({seed for _, seed in found})
    for dim, seed in ((dim, seed) for dim in dims for seed in seeds if (dim, seed) in found):
        own = opened(arguments, [f"seed={seed}"])
        judge_autoencoder(found[dim, seed], own, judges, images, arguments)
    return table(Path(arguments.folder), arguments.split)


if __name__ == "__main__":
    main()
