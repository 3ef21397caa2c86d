"""Everything a run has produced, as one self-contained HTML page: pictures, figures of merit, configuration.

Reads the data set, the model, the training log and the evaluation; writes `report/index.html` (no script, nothing
loaded from elsewhere) and its pictures as `report/*.png`.
"""

import base64
import hashlib
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from ldcvae import LDCVAE

from ldcvae import Posterior
from pipeline.__main__ import main
from pipeline.config.load import Config, dump_yaml
from pipeline.store.data.shards import decode_shard, load_split
from pipeline.store.history import read_history
from pipeline.judge.pages.pictures import Picture, image_grid
from pipeline.report.plots import dots, plane, training_curves
from pipeline.store.manifest import Manifest, read_manifest, run_folder, run_stage, say
from pipeline.store.folder import Folder
from pipeline.tune.plots import stored_pictures
from pipeline.store.model import load_model

__all__ = ["Cell", "format_column", "interpolate", "machine", "render", "run"]

STAGES = {"data": "prepare", "train": "train", "samples": "sample", "evaluation": "evaluate"}  # folder -> module
ONE_PASS = ("prior", "gaussian", "gmm", "sampler")  # generators that neither iterate nor need images
COLUMNS = ("fd", "kid", "precision", "recall", "density", "coverage", "mmd2", "sliced_wasserstein", "latents_per_s")
MAX_POINTS = 2000  # of each cloud in the latent plane; more only makes blots


class Cell(NamedTuple):
    """A number of the table as text.

    Attributes:
        value: the mean, an en dash where there is none.
        spread: the standard deviation over draws, or empty.
    """

    value: str
    spread: str


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


def _significant(value: float, digits: int) -> float:
    return round(value, digits - 1 - math.floor(math.log10(abs(value)))) if value else value


def format_column(
    values: Sequence[float | None], spreads: Sequence[float | None], small: bool = False, rate: bool = False
) -> tuple[list[Cell], int]:
    """One column of the table, all with the same decimals.

    Args:
        values: means; None where there is none.
        spreads: standard deviations, as many.
        small: show the column times 1000 when all of it is below 0.1.
        rate: figures over several orders of magnitude, rounded to three digits each.

    Returns:
        The cells, and the factor 1 or 1000 by which they were multiplied.

    Example:
        >>> format_column([287.61, None, 0.5], [1.25, None, None])
        ([Cell(value='287.6', spread='1.2'), Cell(value='–', spread=''), Cell(value='0.5', spread='')], 1)
    """
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    factor = 1000 if small and 0 < largest < 0.1 else 1
    decimals = 3 if not largest else max(0, min(3, 3 - math.floor(math.log10(largest * factor))))

    def text(value: float | None, digits: int, missing: str) -> str:
        if value is None:
            return missing
        value = _significant(value, digits) if rate else value * factor
        return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")

    pairs = zip(values, spreads, strict=True)
    return [Cell(text(mean, 3, "\N{EN DASH}"), text(spread, 2, "")) for mean, spread in pairs], factor


def _names(config: Config, generators: Iterable[str]) -> dict[str, str]:
    """What the page calls the generators, in the order of the table."""
    known = {
        "prior": "N(0, I)",
        "gaussian": "Gaussian fit",
        "gmm": f"GMM, {config.evaluate.gmm_components} components",
        "langevin": f"Langevin, {config.evaluate.langevin_steps} steps",
        "sampler": "Sampler net",
        "encoder": "Encoder posterior",
    }
    given = list(generators)
    return {key: known[key] for key in known if key in given} | {key: key for key in given if key not in known}


def _table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Cells by row and column, and what the page says in words."""
    rows = dict(metrics["generators"]) | {key: metrics[key] for key in ("floor", "reconstruction") if key in metrics}
    cells: dict[str, dict[str, Cell]] = {key: {} for key in rows}
    factors = {}
    for column in COLUMNS:
        values = [row.get(column) for row in rows.values()]
        spreads = [(row.get("spread") or {}).get(column) for row in rows.values()]
        formatted, factors[column] = format_column(
            values, spreads, small=column in ("kid", "mmd2"), rate=column == "latents_per_s"
        )
        for key, cell in zip(rows, formatted, strict=True):
            cells[key][column] = cell
    fd = {key: row["fd"] for key, row in metrics["generators"].items() if row.get("fd") is not None}
    best = min((key for key in ONE_PASS if key in fd), key=lambda key: fd[key], default=None)
    share = None
    if {"prior", "sampler", "encoder"} <= set(fd) and fd["prior"] > fd["encoder"]:
        share = (fd["prior"] - fd["sampler"]) / (fd["prior"] - fd["encoder"])
    return {"cells": cells, "factors": factors, "best": best, "share": share, "fd": fd}


def _planes(model: LDCVAE, images: Tensor, generator: torch.Generator) -> dict[str, Picture]:
    """Encoder draws of held-out images (N, C, H, W) with draws of the prior, and with draws of the sampler."""
    from sklearn.decomposition import PCA  # imports SciPy: two seconds that only this picture needs

    encodings = model.encodings(images)
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


def _generated(folder: Folder, manifest: Manifest, shape: Sequence[int], count: int) -> np.ndarray:
    """The first images that the sample stage wrote, (n, C, H, W) in [0, 1], n at most `count`."""
    images = np.empty((0, *shape), np.uint8)
    for name in (name for name in sorted(manifest.outputs) if name.endswith(".parquet")):
        if len(images) < count:
            content = folder.read_verified(name, manifest.outputs[name]["sha256"])
            images = np.concatenate([images, decode_shard(content, shape)[0]])
    return images[:count] / 255


def _galleries(model: LDCVAE, samples: np.ndarray, test: Tensor, generator: torch.Generator) -> dict[str, Picture]:
    """Samples (n, C, H, W), reconstructions of some `test` images (N, C, H, W), and interpolations."""
    columns = min(10, len(test))
    # Evenly spaced through the split: chosen by nobody, and of every class where classes come in blocks.
    chosen = test[torch.linspace(0, len(test) - 1, min(2, len(test) // columns) * columns).long()]
    rows = [part.unflatten(0, (-1, columns)) for part in (chosen, model.reconstruct(chosen))]
    pairs = torch.stack(rows, 1).flatten(0, 2)
    start, end = (model.draw_base(6, generator=generator) for _ in range(2))
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
    return {name: Picture(name, png, None, alt) for name, (png, alt) in grids.items()}


def machine() -> str:
    """Processor and accelerator of this machine; the page is usually made where the run was."""
    names = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""  # Linux has no better place
    cpu = re.search(r"^model name\s*: (.*)", names, re.M)
    text = f"{cpu[1] if cpu else platform.processor() or platform.machine()}, {os.cpu_count()} logical CPUs"
    return text + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")


def _csp_hash(script: str) -> str:
    """The source expression that lets a page's Content-Security-Policy run this inline script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def render(content: Mapping[str, Any], template: str = "report.html.j2") -> bytes:
    """A page from one of this package's templates and its variables, every one escaped."""
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("pipeline", "."), undefined=StrictUndefined, **options)
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template(template).render(content).encode()


@torch.inference_mode()
def _make(config: Config, folder: Folder, manifests: dict[str, Manifest]) -> tuple[list[str], dict[str, Any]]:
    metrics = folder.read_json("evaluation/metrics.json")
    model = load_model(folder)
    test = load_split(folder, "test").pixels
    some = test[torch.linspace(0, len(test) - 1, min(MAX_POINTS, len(test))).long()].float() / 255
    generator = torch.Generator().manual_seed(config.seed)
    table = _table(metrics)
    names = _names(config, metrics["generators"])
    samples = _generated(folder, manifests["samples"], test.shape[1:], config.report.images)
    galleries, planes = _galleries(model, samples, some, generator), _planes(model, some, generator)
    curves = training_curves(read_history(folder))
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
    searched = stored_pictures(folder, manifests.get("tune"))
    pictures += searched.values()
    page = render(
        {
            "config": config,
            "config_yaml": dump_yaml(config),
            "metrics": metrics,
            "columns": COLUMNS,
            "names": names,
            "galleries": galleries,
            "planes": planes,
            "curves": curves,
            "distances": distances,
            "stages": STAGES,
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
    folder.remove("report")  # an earlier page may have had pictures that this one has not
    for name, part in files.items():
        folder.write(name, part)
    return list(files), {"pictures": len(pictures), "bytes": len(page)}


def run(config: Config, force: bool = False) -> Manifest:
    """Write the page of a run.

    Args:
        config: the run's configuration.
        force: write it even when nothing it shows has changed.

    Returns:
        The stage's manifest.

    Raises:
        PipelineError: if an earlier stage has not finished, naming the command to run.
    """
    folder = run_folder(config)
    manifests = {stage: read_manifest(folder, stage, f"pipeline.{module}") for stage, module in STAGES.items()}
    for stage in ("tune", "compare"):  # not every run is searched or compared
        if folder.exists(f"{stage}/manifest.json"):
            manifests[stage] = read_manifest(folder, stage, f"pipeline.{stage}")
    # The page shows the whole configuration, so all of it counts.
    depends_on = {"config": config.model_dump(mode="json")} | {key: m.digest for key, m in manifests.items()}
    manifest = run_stage(config, "report", depends_on, lambda to, _: _make(config, to, manifests), force)
    say(f"report: {folder.url}/report/index.html")
    return manifest


if __name__ == "__main__":
    main("report")
