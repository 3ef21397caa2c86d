"""Judge the model: reconstruction, and images from latents of every generator, by several figures.

Writes `evaluation/metrics.json`; docs/metrics.md describes it. Every generator is drawn `evaluate.draws` times;
means and spreads are over those draws.
"""

import statistics
from typing import Any

import torch
from torch import Tensor

from ldcvae.metrics.latents import median_bandwidths, mmd2, sliced_wasserstein
from ldcvae.metrics.images import frechet_distance, kid, prdc
from ldcvae.model import LDCVAE, as_float
from pipeline.__main__ import main
from pipeline.remote.connect import run_on_accelerator
from pipeline.store.data.shards import load_split, read_dataset_manifest
from pipeline.judge.extractors import Extractor, build_extractor
from pipeline.judge.generators import build_generators, timed_draw
from pipeline.remote.progress import Display
from pipeline.config.sections import Config
from pipeline.store.manifest import Manifest, read_manifest, run_folder, run_stage, say
from pipeline.store.folder import Folder
from pipeline.store.data.splits import encode_split, some_images, training_images
from pipeline.store.model import load_model
from ldcvae.training.world import keyed_generator

__all__ = ["image_figures", "run"]


def image_figures(features: Tensor, real: Tensor, neighbours: int) -> dict[str, float]:
    """Figures of generated images against real ones, from features (n, k) and (m, k)."""
    quality = prdc(real, features, k=neighbours)
    return {
        "fd": frechet_distance(features, real),
        "kid": kid(features, real).mean,
        "precision": quality.precision,
        "recall": quality.recall,
        "density": quality.density,
        "coverage": quality.coverage,
    }


@torch.no_grad()
def decode(model: LDCVAE, latents: Tensor) -> Tensor:
    return torch.cat([model.decode(part) for part in latents.split(1000)])


def _reconstruction(model: LDCVAE, pixels: Tensor, extractor: Extractor, real: Tensor) -> dict[str, float]:
    with torch.no_grad():
        images = torch.cat([model.reconstruct(as_float(part)) for part in pixels.split(1000)])
    errors = [
        (as_float(p) - i).square().mean() * len(p)
        for p, i in zip(pixels.split(1000), images.split(1000), strict=True)
    ]
    return {"mse": float(sum(errors) / len(pixels)), "fd": frechet_distance(extractor(images), real)}


def _summary(draws: list[dict[str, float]]) -> dict[str, Any]:
    values = {name: [draw[name] for draw in draws] for name in draws[0]}
    spread = {name: statistics.stdev(series) if len(series) > 1 else 0.0 for name, series in values.items()}
    return {name: statistics.fmean(series) for name, series in values.items()} | {"spread": spread, "values": values}


def _evaluate(job: dict[str, Any]) -> dict[str, Any]:
    """Everything that wants a GPU where there is one; runs here or in a Ray task."""
    config, run = Config.model_validate(job["config"]), Folder(job["run"])
    settings = config.evaluate
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = read_dataset_manifest(run)
    model = load_model(run).to(device)
    train, held_out = training_images(run, config.train.memory_mb), load_split(run, settings.split).pixels
    extractor = build_extractor(run, settings, config.seed, data, config.train.memory_mb).to(device)
    real = extractor(held_out.to(device))
    encodings = encode_split(model, train)
    truth = model.encodings(held_out)

    def noise(purpose: str, draw: int = 0) -> torch.Generator:
        return keyed_generator(device, config.seed, "evaluate", purpose, draw)

    def latent_figures(latents: Tensor, reference: Tensor, bandwidths: list[float], draw: int) -> dict[str, float]:
        u = model.whitening.whiten(latents)
        return {
            "mmd2": mmd2(u, reference, bandwidths),
            "sliced_wasserstein": sliced_wasserstein(u, reference, generator=noise("slices", draw)),
        }

    n = settings.num_images
    references = [model.whitening.whiten(truth.draw(n, noise("truth", draw))) for draw in range(settings.draws)]
    bandwidths = median_bandwidths(references[0])
    generators: dict[str, Any] = {}
    display, total = Display("evaluate"), settings.draws * len(settings.generators)
    for name, draw in build_generators(model, encodings, settings, noise("fits")).items():
        timed_draw(draw, min(n, 200), noise("warm-up"))  # the first call of a net pays for its set-up
        draws = []
        for number, reference in enumerate(references):
            latents, rate = timed_draw(draw, n, noise(name, number))
            figures = image_figures(extractor(decode(model, latents)), real, settings.neighbours)
            draws.append(figures | latent_figures(latents, reference, bandwidths, number) | {"latents_per_s": rate})
            done = (len(generators) * settings.draws + len(draws)) / total
            note = f"{name}: {extractor.figure} {figures['fd']:.4g}"
            display.update({"phase": "draws", "done": done}, note)
        generators[name] = _summary(draws)
    display.close()
    others = some_images(train, n, config.seed, "floor").to(device)
    return {
        "schema": 1,
        "split": settings.split,
        "extractor": extractor.describe(),
        "num_images": n,
        "num_reference": len(held_out),
        "draws": settings.draws,
        "neighbours": settings.neighbours,
        "seed": config.seed,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "reconstruction": _reconstruction(model, held_out.to(device), extractor, real),
        "floor": image_figures(extractor(others), real, settings.neighbours),
        "generators": generators,
    }


def run(config: Config, force: bool = False) -> Manifest:
    """Evaluate the run's model on `evaluate.split`, unless that is done.

    Returns:
        The manifest; the figures are in `evaluation/metrics.json`.

    Raises:
        PipelineError: if an earlier stage has not finished.
        ConfigError: if the extractor does not fit the data.
    """
    folder = run_folder(config)
    data = read_dataset_manifest(folder)
    trained = read_manifest(folder, "train", "pipeline.train")

    def work(run: Folder, _: str) -> tuple[list[str], dict[str, Any]]:
        job = {"config": config.model_dump(mode="json"), "run": run.url}
        metrics = run_on_accelerator(config, _evaluate, job)
        run.write_json("evaluation/metrics.json", metrics)
        _tell(metrics)
        names = ["evaluation/metrics.json"]
        if metrics["extractor"]["name"] == "classifier":
            names += ["evaluation/classifier.json", "evaluation/classifier.safetensors"]
        return names, {"extractor": metrics["extractor"], "split": metrics["split"]}

    depends_on = {
        "data": data.digest,
        "train": trained.digest,
        "seed": config.seed,
        "evaluate": config.evaluate.model_dump(mode="json"),
    }
    return run_stage(config, "evaluation", depends_on, work, force)


def _tell(metrics: dict[str, Any]) -> None:
    """The table in the terminal."""
    figure = metrics["extractor"]["figure"]
    say(
        f"{'latents':10}{figure:>18}{'precision':>11}{'recall':>8}{'density':>9}{'coverage':>10}{'MMD²·1e3':>10}{'latents/s':>13}"
    )
    for name, row in metrics["generators"].items():
        fd = f"{row['fd']:.3f} ± {row['spread']['fd']:.3f}"
        say(
            f"{name:10}{fd:>18}{row['precision']:>11.3f}{row['recall']:>8.3f}{row['density']:>9.3f}"
            f"{row['coverage']:>10.3f}{row['mmd2'] * 1e3:>10.2f}{row['latents_per_s']:>13,.0f}"
        )
    say(
        f"train against {metrics['split']}: {figure} {metrics['floor']['fd']:.3f}; reconstruction: mse "
        f"{metrics['reconstruction']['mse']:.4f}, {figure} {metrics['reconstruction']['fd']:.3f}"
    )


if __name__ == "__main__":
    main("evaluate")
