"""Gathers what a run has produced and writes its page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldcvae import LDCVAE, Posterior
from ldcvae.batches import batches
from ldcvae.losses import as_float
from ldcvae.training.encode import encode_split
from ldcvae.variants import GENERATORS
from pipeline.config.load import dump_yaml
from pipeline.config.sections import Config
from pipeline.judge.doubts import clear_best, doubts, label_share
from pipeline.judge.generators import budget_of
from pipeline.judge.pages.pictures import Picture, image_grid
from pipeline.judge.pages.plots import dots
from pipeline.judge.pages.render import Entry, format_column, machine, render
from pipeline.judge.pages.stored import stored_pictures
from pipeline.report.card import model_card
from pipeline.report.plots import plane, training_curves
from pipeline.report.stage import SHOWN
from pipeline.store.data.shards import decode_shard
from pipeline.store.data.splits import spaced_images, split_images
from pipeline.store.data.stored import PickedImages
from pipeline.store.history import HISTORY_FILES, parse_history
from pipeline.store.manifest import Manifest
from pipeline.store.model import load_before, load_model
from pipeline.store.run import STAGES, Run
from pipeline.store.schema import Metrics, parse_as

__all__ = ["interpolate", "work"]

COLUMNS = ("fd", "kid", "precision", "recall", "density", "coverage", "mmd2", "sliced_wasserstein", "latents_per_s")
SECOND = "fd_second"  # a column more, after the first, where there was a second extractor
MAX_POINTS = 2000  # of each cloud in the latent plane; more only makes blots


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Spherical interpolation: between two draws of N(0, I) every step is again one, which on a line it is not.

    Args:
        start: (N, d).
        end: (N, d).
        steps: points on each path, both ends included.

    Returns:
        (N, steps, d).

    Example:
        >>> interpolate(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 3)[0, 1]
        tensor([0.7071, 0.7071])
    """
    t = torch.linspace(0, 1, steps)[:, None]
    # Kept off 0 and π, where the formula divides by zero; in one dimension every pair of draws is there.
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=1).clamp(-1 + 1e-4, 1 - 1e-4)
    angle = torch.acos(cosine)[:, None, None]
    left, right = torch.sin((1 - t) * angle), torch.sin(t * angle)
    return (left * start[:, None] + right * end[:, None]) / torch.sin(angle)


def _names(config: Config, generators: Iterable[str]) -> dict[str, str]:
    """What the page calls the generators, in the order of the table; a plugin's that is not loaded, its name."""
    budget, given = budget_of(config), list(generators)
    titles = {name: record.title(budget, "N(0, I)") for name, record in GENERATORS.items() if name in given}
    titles |= {name: name for name in given if name not in titles}
    if (temperature := config.sample.temperature) != 1 and "sampler" in titles:
        titles["sampler"] += f", temperature {temperature:g}"
    return {name: title[0].upper() + title[1:] for name, title in titles.items()}


def _one_pass(config: Config, generators: Iterable[str]) -> list[str]:
    """The generators that need at most one pass of a network, and no image."""
    budget, known = budget_of(config), [GENERATORS[name] for name in generators if name in GENERATORS]
    return [one.name for one in known if one.kind != "bound" and one.passes(budget, config.model.latent_dim) <= 1]


def _columns(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    return (*COLUMNS[:1], SECOND, *COLUMNS[1:]) if "second_extractor" in metrics else COLUMNS


def _table(
    metrics: Mapping[str, Any], config: Config, names: Mapping[str, str], share_of_label: float | None
) -> dict[str, Any]:
    """Cells by row and column, and what the page says in words."""
    rows = dict(metrics["generators"]) | {key: metrics[key] for key in ("floor", "reconstruction") if key in metrics}
    cells: dict[str, dict[str, Entry]] = {key: {} for key in rows}
    factors = {}
    for column in _columns(metrics):
        values = [row.get(column) for row in rows.values()]
        spreads = [(row.get("spread") or {}).get(column) for row in rows.values()]
        formatted, factors[column] = format_column(
            values, spreads, small=column in ("kid", "mmd2", SECOND), rate=column == "latents_per_s"
        )
        for key, cell in zip(rows, formatted, strict=True):
            cells[key][column] = cell
    fd = {key: row["fd"] for key, row in metrics["generators"].items() if row.get("fd") is not None}
    spread = {key: (metrics["generators"][key].get("spread") or {}).get("fd") or 0.0 for key in fd}
    why = doubts(metrics, share_of_label)
    keys = {names[key]: key for key in _one_pass(config, fd)}
    first, undecided = clear_best({name: (fd[key], spread[key]) for name, key in keys.items()})
    best = keys.get(first or "")
    if why:
        best, undecided = None, "see the warning above"
    share = None
    if not why and {"prior", "sampler", "encoder"} <= set(fd):
        gap = fd["prior"] - fd["encoder"]
        if gap > math.hypot(spread["prior"], spread["encoder"]):
            share = (fd["prior"] - fd["sampler"]) / gap
    decided = {"doubts": why, "best": best, "undecided": undecided, "share": share}
    return {"cells": cells, "factors": factors, "fd": fd} | decided


def _planes(model: LDCVAE, images: Tensor | PickedImages, generator: torch.Generator) -> dict[str, Picture]:
    """Encoder draws of held-out images (N, C, H, W) with draws of the prior, and with draws of the sampler."""
    from sklearn.decomposition import PCA  # imports SciPy: two seconds that only this picture needs

    encodings = encode_split(model, images)
    noise = torch.randn(encodings.mean.shape, generator=generator)
    encoder = Posterior(encodings.mean, encodings.log_variance).draw(noise).numpy()
    pca = PCA(min(2, encoder.shape[1]), svd_solver="full").fit(encoder)
    reference = pca.transform(encoder)
    points = {
        "prior": pca.transform(torch.randn(encoder.shape, generator=generator).numpy()),
        "sampler": pca.transform(model.sample_latents(len(encoder), generator=generator).numpy()),
    }
    low, high = np.quantile(np.concatenate([reference, *points.values()]), [0.001, 0.999], axis=0)
    margin = 0.08 * (high - low) + 1e-6
    limits = list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
    pictures = {}
    for key, name in {"prior": "N(0, I)", "sampler": "sampler net"}.items():
        names = ("encoder, test images", name)
        draw = partial(plane, reference, points[key], names, key, pca.explained_variance_ratio_, limits)
        alt = f"{len(encoder):,} encoder draws of test images and as many draws of {name} in the same plane"
        pictures[key] = Picture.both(draw, f"latents-{key}", alt)
    return pictures


def _generated(run: Run, shape: Sequence[int], count: int) -> np.ndarray:
    """The first images that the sample stage wrote, (n, C, H, W) in [0, 1], n at most `count`."""
    images = np.empty((0, *shape), np.uint8)
    for name in (name for name in sorted(run.manifest("samples").outputs) if name.endswith(".parquet")):
        if len(images) < count:
            content = run.output("samples", name)
            images = np.concatenate([images, decode_shard(content, shape)[0]])
    return images[:count] / 255


def _galleries(
    model: LDCVAE,
    before: LDCVAE | None,
    samples: np.ndarray,
    test: Tensor | PickedImages,
    generator: torch.Generator,
) -> dict[str, Picture]:
    """Samples (n, C, H, W), reconstructions of some `test` images (N, C, H, W) uint8, and interpolations.

    With a model `before` phase `decoder`, what that phase did to images of the same latents too.
    """
    columns = min(10, len(test))
    # Evenly spaced through the split: chosen by nobody, and of every class where classes come in blocks.
    few = spaced_images(test, min(2, len(test) // columns) * columns)
    chosen = as_float(torch.cat([*batches(few, len(few))]))
    rows = [part.unflatten(0, (-1, columns)) for part in (chosen, model.reconstruct(chosen))]
    pairs = torch.stack(rows, 1).flatten(0, 2)
    start, end = (model.draw_base(6, generator, model.config.temperature) for _ in range(2))
    path = interpolate(start, end, 9).flatten(0, 1)
    between = model.decode(model.whitening.unwhiten(model.sampler(path)))
    grids = {
        "samples": (image_grid(samples, math.ceil(len(samples) ** 0.5)), f"{len(samples)} generated images"),
        "reconstructions": (
            image_grid(pairs.numpy(), columns, pair_rows=True),
            f"{len(chosen)} test images, each with its reconstruction below it",
        ),
        "interpolations": (
            image_grid(between.numpy(), 9),
            "Six rows of nine generated images, each passing in steps from one draw of the sampler to another",
        ),
    }
    if before is not None:
        latents = model.sample_latents(30, generator=generator)
        both = [one.decode(latents).unflatten(0, (-1, 10)) for one in (before, model)]
        grids["decoder"] = (
            image_grid(torch.stack(both, 1).flatten(0, 2).numpy(), 10, pair_rows=True),
            f"{len(latents)} generated images, each as decoded before phase decoder and after it, below",
        )
    return {name: Picture(name, png, None, alt) for name, (png, alt) in grids.items()}


@torch.inference_mode()
def work(run: Run, manifests: dict[str, Manifest]) -> tuple[list[str], dict[str, Any]]:
    """Write the page of these stages; name what was written and what is to be told."""
    config, folder = run.config, run.folder
    content = run.output("evaluation", "evaluation/metrics.json")
    again = "run `python -m pipeline.evaluate --force` with the same config"
    metrics = parse_as(Metrics, content, f"{folder.url}/evaluation/metrics.json", again)
    model = load_model(run)
    some = spaced_images(split_images(run, "test"), MAX_POINTS)
    generator = torch.Generator().manual_seed(config.seed)
    names = _names(config, metrics["generators"])
    table = _table(metrics, config, names, label_share(manifests["data"].info.get("label_counts", {})))
    samples = _generated(run, run.shape, config.report.images)
    planes = _planes(model, some, generator)
    galleries = _galleries(model, load_before(run, model), samples, some, generator)
    curves = training_curves(parse_history(run.output("train", HISTORY_FILES[0])))
    pictures = [*galleries.values(), *planes.values(), *(p for phase in curves.values() for p in phase)]
    distances = None
    if fd := table["fd"]:
        figure = metrics["extractor"]["figure"]
        shown = [key for key in names if key in fd]
        draws = {names[key]: metrics["generators"][key].get("values", {}).get("fd") or [fd[key]] for key in shown}
        draw = partial(dots, draws, names.get("sampler"), fd.get("encoder"), f"{figure}, lower is better")
        alt = f"{figure} of each generator: " + ", ".join(f"{names[key]} {fd[key]:.4g}" for key in shown)
        distances = Picture.both(draw, "distances", alt)
        pictures.append(distances)
    searched = stored_pictures(run)
    pictures += searched.values()
    page = render(
        {
            "config": config,
            "config_yaml": dump_yaml(config),
            "metrics": metrics,
            "columns": _columns(metrics),
            "names": names,
            "galleries": galleries,
            "planes": planes,
            "curves": curves,
            "distances": distances,
            "stages": {stage: STAGES[stage] for stage in SHOWN},
            "manifests": manifests,
            "model": model.config,
            "machine": machine(),
            "num_samples": len(samples),
            "searched": searched,
            **table,
        }
    )
    files = {f"report/{name}": png for picture in pictures for name, png in picture.files.items()}
    files["report/index.html"] = page
    files["report/MODEL_CARD.md"] = model_card(model.config, manifests["data"].info, metrics, names).encode()
    folder.remove("report")  # an earlier page may have had pictures that this one has not
    for name, part in files.items():
        folder.write(name, part)
    return list(files), {"pictures": len(pictures), "bytes": len(page)}
