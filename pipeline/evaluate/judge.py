"""Evaluates a trained model, here or on a GPU of the cluster, and prints the table."""

import statistics
from typing import Any

import torch

from ldcvae.model import LDCVAEConfig
from ldcvae.training.encode import encode_split
from ldcvae.training.world import keyed_generator
from pipeline.judge.doubts import doubts, label_share
from pipeline.judge.extractors import build_extractor, second_extractor
from pipeline.judge.figures import DrawJudge, Judge
from pipeline.judge.generators import fitted
from pipeline.remote.connect import run_on_accelerator
from pipeline.remote.device import device_name, process_device
from pipeline.remote.progress import Display
from pipeline.store.data.splits import some_images, split_images
from pipeline.store.manifest import say
from pipeline.store.model import load_model
from pipeline.store.run import Run

__all__ = ["work"]


def _summary(draws: list[dict[str, float]]) -> dict[str, Any]:
    values = {name: [draw[name] for draw in draws] for name in draws[0]}
    spread = {name: statistics.stdev(series) if len(series) > 1 else 0.0 for name, series in values.items()}
    return {name: statistics.fmean(series) for name, series in values.items()} | {"spread": spread, "values": values}


def _evaluate(run: Run) -> tuple[dict[str, Any], tuple[str, ...]]:
    """All that wants a GPU where there is one, here or in a Ray task: the figures, and files written on the way."""
    config, settings = run.config, run.config.evaluate
    device = process_device(config)
    model, extractor = load_model(run).to(device), build_extractor(run).to(device)
    held_out = split_images(run, settings.split)
    other = second_extractor(run)
    second = None if other is None else (other, other.to(device)(held_out))
    judge = Judge(extractor, extractor(held_out), settings.neighbours, device, second)

    def noise(purpose: str, draw: int = 0) -> torch.Generator:
        return keyed_generator(device, config.seed, "evaluate", purpose, draw)

    draws = DrawJudge(judge, model, encode_split(model, held_out), noise, settings.num_images, settings.draws)
    reconstruction = judge.reconstruction(model, held_out)
    num_reference = len(held_out)
    del held_out  # one split in memory at a time
    train = split_images(run, "train")
    encodings = encode_split(model, train)
    floor = judge.of_images(some_images(train, settings.num_images, config.seed, "floor"))
    del train
    wanted = "held_out" in settings.generators
    validation = encode_split(model, split_images(run, "validation")) if wanted else None
    fits = noise("fits")
    generators: dict[str, Any] = {}
    display, total = Display("evaluate"), settings.draws * len(settings.generators)
    for name, draw in fitted(config, model, encodings, validation, lambda purpose: fits):
        rows = []
        for figures in draws.each(draw, name):
            rows.append(figures)
            done = (len(generators) * settings.draws + len(rows)) / total
            note = f"{name}: {extractor.figure} {figures['fd']:.4g}"
            display.update({"phase": "draws", "done": done}, note)
        generators[name] = _summary(rows)
    display.close()
    metrics = {
        "schema": 1,
        "split": settings.split,
        "extractor": extractor.describe(),
        **({} if other is None else {"second_extractor": other.describe()}),
        "num_images": settings.num_images,
        "num_reference": num_reference,
        "draws": settings.draws,
        "neighbours": settings.neighbours,
        "temperature": config.sample.temperature,
        "seed": config.seed,
        "device": device_name(device),
        "decoder": _decoder(model.config),
        "reconstruction": reconstruction,
        "floor": floor,
        "generators": generators,
    }
    return metrics, (*extractor.files, *(() if other is None else other.files))


def _decoder(config: LDCVAEConfig) -> dict[str, Any] | None:
    """What sets this model's images apart from those of a decoder as phase 1 leaves it; None for such a one."""
    if not config.decoder_note:
        return None
    return {"epochs": config.decoder_epochs, "adversarial": config.adversarial, "note": config.decoder_note}


def work(run: Run) -> tuple[list[str], dict[str, Any]]:
    """Judge, write and tell the figures; name what was written and what is to be told."""
    metrics, files = run_on_accelerator(run.config, _evaluate, run)
    run.folder.write_json("evaluation/metrics.json", metrics)
    _tell(metrics)
    for doubt in doubts(metrics, label_share(run.data.info.get("label_counts", {}))):
        say(f"evaluate: WARNING: {doubt}")
    return ["evaluation/metrics.json", *files], {"extractor": metrics["extractor"], "split": metrics["split"]}


def _tell(metrics: dict[str, Any]) -> None:
    """The table in the terminal."""
    figure = metrics["extractor"]["figure"]
    width = max(10, *(len(name) + 1 for name in metrics["generators"]))
    second = metrics["second_extractor"]["figure"] if "second_extractor" in metrics else None
    headings = {"precision": 11, "recall": 8, "density": 9, "coverage": 10, "MMD²·1e3": 10, "latents/s": 13}
    figures = {figure: 18} | ({second: 22} if second else {}) | headings
    say(f"{'latents':{width}}" + "".join(f"{name:>{size}}" for name, size in figures.items()))
    if metrics["decoder"] is not None:
        say(f"all of them: {metrics['decoder']['note']}")
    if metrics["temperature"] != 1:
        say(f"sampler: drawn at temperature {metrics['temperature']:g}")
    for name, row in metrics["generators"].items():
        cells = [f"{row['fd']:.3f} ± {row['spread']['fd']:.3f}"]
        if second:
            cells.append(f"{row['fd_second']:.4g} ± {row['spread']['fd_second']:.2g}")
        cells += [f"{row[figure]:.3f}" for figure in ("precision", "recall", "density", "coverage")]
        cells += [f"{row['mmd2'] * 1e3:.2f}", f"{row['latents_per_s']:,.0f}"]
        say(
            f"{name:{width}}" + "".join(f"{cell:>{size}}" for cell, size in zip(cells, figures.values(), strict=True))
        )
    say(
        f"train against {metrics['split']}: {figure} {metrics['floor']['fd']:.3f}; reconstruction: mse "
        f"{metrics['reconstruction']['mse']:.4f}, {figure} {metrics['reconstruction']['fd']:.3f}"
    )
