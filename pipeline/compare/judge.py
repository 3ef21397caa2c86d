"""Fit one generator of a comparison on a trained autoencoder, draw from it, and judge the decoded images."""

import statistics
import time
from typing import Any

import torch

from ldcvae.rivals.fitting import Draw, Fitting, at_temperature
from ldcvae.training.heap import peak_mb, reset_peak
from ldcvae.training.world import keyed_generator
from ldcvae.variants import GENERATORS
from pipeline.compare.cells import Cell, StoredAutoencoder, read_autoencoder, temperatures_of
from pipeline.judge.figures import DrawJudge, Reference, decoded
from pipeline.judge.generators import budget_of
from pipeline.judge.pages.pictures import image_grid
from pipeline.remote.device import process_device
from pipeline.store.checkpoint import NewestCheckpoint
from pipeline.store.run import Run

__all__ = ["judge_generator"]

_GRID = 8  # images per side of a cell's sample grid


def _judged(
    run: Run, stored: StoredAutoencoder, draws: dict[float, Draw], seed: int, reference: Reference
) -> dict[str, Any]:
    """FD to the validation images, by which temperatures and candidates are chosen; figures of test images; a grid.

    Args:
        run: of the comparison.
        stored: the autoencoder.
        draws: temperature -> draw.
        seed: of the noise, which is the same at every temperature.
        reference: what is judged by.
    """
    model, settings = stored.model, run.config.evaluate
    validation, test = (reference.judge(split, settings.neighbours, model.device) for split in ("validation", "test"))

    def noise(purpose: str, number: int = 0) -> torch.Generator:
        return keyed_generator(model.device, seed, "compare", "judge", purpose, number)

    def chosen_by(draw: Draw) -> float:
        latents = draw(run.config.compare.selection_images, noise("validation"))
        return validation.distance(validation.extractor.of(decoded(model, latents)))

    distances = {temperature: chosen_by(draw) for temperature, draw in draws.items()}
    temperature = min(distances, key=lambda one: distances[one])
    draw = draws[temperature]
    held_out = stored.encodings["test"]
    judge = DrawJudge(test, model, held_out, noise, settings.num_images, settings.draws)
    rows = list(judge.each(draw, "test", ("train", stored.encodings["train"]), ("held_out", held_out)))
    figures = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    return {
        "selection": distances[temperature],
        "figures": figures | ({"temperature": temperature} if set(draws) != {1.0} else {}),
        "grid": image_grid(model.decode(draw(_GRID**2, noise("grid"))).cpu().numpy(), _GRID),
    }


def judge_generator(run: Run, cell: Cell, reference: Reference) -> dict[str, Any]:
    """Fit, draw and judge the generator of a cell, and write the cell.

    Args:
        run: of the comparison.
        cell: to compute.
        reference: what all cells are judged by.

    Returns:
        The cell's record: `selection` (FD to validation images), `figures` (means over draws on test images, the
        temperature where there was a choice, seconds of fitting, peak_mb).

    Raises:
        NonFiniteLossError: from a sampler net; FloatingPointError from the other fits.
    """
    name, seed, folder = cell.job["name"], cell.job["seed"], run.folder
    device = process_device(run.config)
    reset_peak()
    stored = read_autoencoder(run, cell, reference.shape).to(device)
    kept = NewestCheckpoint(folder / f"compare/checkpoints/{cell.key}")
    fitting = Fitting(
        name,
        stored.model,
        stored.encodings["train"],
        stored.encodings["validation"],
        stored.prior,
        cell.job["setting"],
        budget_of(run.config),
        seed,
        kept=kept,
    )
    started = time.perf_counter()
    draw = GENERATORS[name].fit(fitting)
    seconds = fitting.seconds if fitting.seconds is not None else time.perf_counter() - started
    peak = peak_mb()
    temperatures = temperatures_of(run.config, name)
    draws = {one: draw if one == 1.0 else at_temperature(draw, one) for one in temperatures}
    with torch.no_grad():
        found = _judged(run, stored, draws, seed, reference)
    folder.write(f"{cell.folder}/grid.png", found.pop("grid"))
    record = {"cell": cell.job, **found, "finished": time.time()}
    record["figures"] |= {"seconds": seconds, "peak_mb": peak}
    folder.write_json(cell.record, record)
    folder.remove(f"compare/checkpoints/{cell.key}")
    return record
