"""Draws the images batch by batch, here or in Ray tasks, and writes them."""

import io
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldcvae.batches import rows_at_a_time
from ldcvae.model import LDCVAE
from ldcvae.training.world import keyed_generator
from pipeline.judge.pages.pictures import image_grid
from pipeline.remote.connect import connect, parallel_map, task_resources
from pipeline.remote.device import device_name, process_device
from pipeline.remote.hardware import is_local, use_cuda
from pipeline.store.data.shards import encode_shard
from pipeline.store.manifest import Output
from pipeline.store.model import load_model
from pipeline.store.run import Run

__all__ = ["encode_png", "sample_batch", "work"]


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


@torch.no_grad()
def sample_batch(model: LDCVAE, seed: int, batch: int, size: int) -> Tensor:
    """The images of one batch: uint8 (size, C, H, W), a function of the weights, the seed and the batch's number.

    One thread: how a sum is split over threads changes its last bits, and with them some rounded pixels. The noise is
    drawn on the CPU wherever the model is, so that a GPU makes the same images but for that rounding.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        latents = model.sample_latents(size, keyed_generator("cpu", seed, "sample", batch))
        parts = latents.split(rows_at_a_time(model.config.image_shape, size))
        return torch.cat([(model.decode(part) * 255.0).round().to(torch.uint8).cpu() for part in parts])
    finally:
        torch.set_num_threads(threads)


_newest: tuple[tuple[str, str, float, torch.device], LDCVAE] | None = None


def _model(run: Run, digest: str, device: torch.device) -> LDCVAE:
    """The model on a device, loaded once a process; `digest` makes a new training a new model."""
    global _newest
    key = run.folder.url, digest, run.config.sample.temperature, device
    if _newest is None or _newest[0] != key:
        _newest = key, load_model(run).to(device)
    return _newest[1]


class _Written(NamedTuple):
    """What a batch has left: its files, what drew it, and as many images as a grid shows."""

    files: list[Output]
    device: str
    first: np.ndarray


def _write_batch(job: dict[str, Any]) -> _Written:
    run, batch, device = job["run"], job["batch"], torch.device(job["device"])
    settings = run.config.sample
    pixels = sample_batch(_model(run, job["digest"], device), run.config.seed, batch, job["size"])
    contents = [(f"samples/images-{batch:05d}.parquet", encode_shard(pixels.numpy(), None, "sample"))]
    if settings.png:
        first = job["first"]
        contents += [(f"samples/png/{first + at:06d}.png", encode_png(image)) for at, image in enumerate(pixels)]
    for name, content in contents:
        run.folder.write(name, content)
    return _Written(
        [Output.of(*one) for one in contents],
        device_name(device),
        pixels[: settings.grid**2 if batch == 0 else 0].numpy(),
    )


def _write_all(run: Run, jobs: list[dict[str, Any]]) -> list[_Written]:
    """All batches on one kind of device, which is chosen here: here, or in Ray tasks."""
    config, workers = run.config, run.config.sample.num_workers
    if workers == 1 and is_local(config):
        kind = process_device(config).type
        return [_write_batch(job | {"device": kind}) for job in jobs]
    with connect(config):
        cuda = use_cuda(config.train.device)
        placed = [job | {"device": "cuda" if cuda else "cpu"} for job in jobs]
        if workers == 1 and not cuda:
            return [_write_batch(job) for job in placed]
        return list(parallel_map(_write_batch, placed, workers, task_resources(cuda, workers)))


def work(run: Run, digest: str) -> tuple[list[str | Output], dict[str, Any]]:
    """Draw and write all images of the model with this digest; name what was written and what is to be told."""
    settings, folder = run.config.sample, run.folder
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
    written = _write_all(run, jobs)
    shown = written[0].first
    folder.write("samples/grid.png", image_grid(shown / 255.0, settings.grid))
    files = [file for part in written for file in part.files]
    # What drew them is told, but does not make them stale: images of either kind are draws of the same model.
    device = ", ".join(sorted({part.device for part in written}))
    info = {"num_images": settings.num_images, "pixel_mean": float(np.mean(shown)), "device": device}
    return ["samples/grid.png", *files], info
