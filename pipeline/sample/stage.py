"""Draws the images batch by batch, here or in Ray tasks, and writes them."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldcvae.model import LDCVAE
from ldcvae.training.world import keyed_generator
from pipeline.judge.pages.pictures import image_grid
from pipeline.remote.connect import connect, parallel_map
from pipeline.store.data.shards import encode_shard
from pipeline.store.manifest import Manifest
from pipeline.store.model import load_model
from pipeline.store.run import Run

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


_newest: tuple[tuple[str, str], LDCVAE] | None = None


def _model(run: Run, digest: str) -> LDCVAE:
    """The model, loaded once a process; `digest` makes a new training a new model."""
    global _newest
    if _newest is None or _newest[0] != (run.folder.url, digest):
        _newest = (run.folder.url, digest), load_model(run)
    return _newest[1]


def _write_batch(job: dict[str, Any]) -> list[str]:
    run, batch = job["run"], job["batch"]
    pixels = sample_batch(_model(run, job["digest"]), run.config.seed, batch, job["size"])
    name = f"samples/images-{batch:05d}.parquet"
    run.folder.write(name, encode_shard(pixels.numpy(), None, "sample"))
    names = [name]
    if run.config.sample.png:
        for offset, image in enumerate(pixels):
            names.append(f"samples/png/{job['first'] + offset:06d}.png")
            run.folder.write(names[-1], encode_png(image))
    return names


def run(run: Run, force: bool = False) -> Manifest:
    """See `pipeline.sample.run`."""
    settings, folder = run.config.sample, run.folder
    digest = run.made("train").digest

    def work(_: str) -> tuple[list[str], dict[str, Any]]:
        folder.remove("samples")
        jobs: list[dict[str, Any]] = [
            {
                "run": run,
                "digest": digest,
                "batch": batch,
                "first": first,
                "size": min(settings.batch_size, settings.num_images - first),
            }
            for batch, first in enumerate(range(0, settings.num_images, settings.batch_size))
        ]
        if settings.num_workers == 1:
            written = [_write_batch(job) for job in jobs]
        else:
            with connect(run.config):
                written = list(parallel_map(_write_batch, jobs, settings.num_workers))
        count = min(settings.grid**2, settings.batch_size, settings.num_images)
        pixels = sample_batch(_model(run, digest), run.config.seed, 0, jobs[0]["size"])[:count]
        folder.write("samples/grid.png", image_grid(pixels.numpy() / 255.0, settings.grid))
        names = [name for part in written for name in part]
        mean = float(np.mean(pixels.numpy()))
        return ["samples/grid.png", *names], {"num_images": settings.num_images, "pixel_mean": mean}

    depends_on = {"train": digest, "seed": run.config.seed, "sample": settings.model_dump(exclude={"num_workers"})}
    return run.stage("samples", depends_on, work, force)
