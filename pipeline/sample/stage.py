"""Generate images: `samples/images-*.parquet` and `samples/grid.png`, optionally single PNG files.

Batches are drawn from generators keyed by (seed, batch), so the same seed gives the same images for any number of
workers.
"""

import functools
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldcvae.model import LDCVAE
from pipeline.__main__ import main
from pipeline.remote.connect import connect, parallel_map
from pipeline.store.data.shards import encode_shard
from pipeline.judge.pages.pictures import image_grid
from pipeline.config.sections import Config
from pipeline.store.manifest import Manifest, read_manifest, run_folder, run_stage
from pipeline.store.folder import Folder
from pipeline.store.model import load_model
from ldcvae.training.world import keyed_generator

__all__ = ["encode_png", "run", "sample_batch"]


def encode_png(pixels: Tensor) -> bytes:
    """PNG file of a uint8 image (C, H, W), one or three channels.

    Example:
        >>> encode_png(torch.zeros(1, 2, 2, dtype=torch.uint8))[1:4]
        b'PNG'
    """
    array = pixels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def sample_batch(model: LDCVAE, seed: int, batch: int, size: int) -> Tensor:
    """The images of one batch: uint8 (size, C, H, W), a function of the weights, the seed and the batch's number.

    One thread: how a sum is split over threads changes its last bits, and with them some rounded pixels.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = model.sample(size, keyed_generator("cpu", seed, "sample", batch))
    finally:
        torch.set_num_threads(threads)
    return (images * 255.0).round().to(torch.uint8).cpu()


@functools.lru_cache(maxsize=1)
def _model(run_url: str, digest: str) -> LDCVAE:
    """The model, loaded once a process; `digest` makes a new training a new model."""
    return load_model(Folder(run_url))


def _write_batch(job: dict[str, Any]) -> list[str]:
    run, batch = Folder(job["run"]), job["batch"]
    pixels = sample_batch(_model(job["run"], job["digest"]), job["seed"], batch, job["size"])
    name = f"samples/images-{batch:05d}.parquet"
    run.write(name, encode_shard(pixels.numpy(), None, "sample"))
    names = [name]
    if job["png"]:
        for offset, image in enumerate(pixels):
            names.append(f"samples/png/{job['first'] + offset:06d}.png")
            run.write(names[-1], encode_png(image))
    return names


def run(config: Config, force: bool = False) -> Manifest:
    """Generate `sample.num_images` images, unless they are there.

    Raises:
        PipelineError: if `pipeline.train` has not finished.
    """
    settings = config.sample
    digest = read_manifest(run_folder(config), "train", "pipeline.train").digest

    def work(folder: Folder, _: str) -> tuple[list[str], dict[str, Any]]:
        folder.remove("samples")
        jobs: list[dict[str, Any]] = [
            {
                "run": folder.url,
                "digest": digest,
                "seed": config.seed,
                "batch": batch,
                "first": first,
                "size": min(settings.batch_size, settings.num_images - first),
                "png": settings.png,
            }
            for batch, first in enumerate(range(0, settings.num_images, settings.batch_size))
        ]
        if settings.num_workers == 1:
            written = [_write_batch(job) for job in jobs]
        else:
            with connect(config):
                written = list(parallel_map(_write_batch, jobs, settings.num_workers))
        count = min(settings.grid**2, settings.batch_size, settings.num_images)
        pixels = sample_batch(_model(folder.url, digest), config.seed, 0, jobs[0]["size"])[:count]
        folder.write("samples/grid.png", image_grid(pixels.numpy() / 255.0, settings.grid))
        names = [name for part in written for name in part]
        mean = float(np.mean(pixels.numpy()))
        return ["samples/grid.png", *names], {"num_images": settings.num_images, "pixel_mean": mean}

    depends_on = {"train": digest, "seed": config.seed, "sample": settings.model_dump(exclude={"num_workers"})}
    return run_stage(config, "samples", depends_on, work, force)


if __name__ == "__main__":
    main("sample")
