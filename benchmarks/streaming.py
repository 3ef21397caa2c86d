"""Training images streamed from Parquet against images in memory: speed, and memory as the data grow.

Prints images per second of phase 1 (ELBO, a small convolutional net) and of reading alone, with both kinds of images
taking turns in one process; then, each in a process of its own, by how much reading one epoch raises the peak of
resident memory, for a data set and one four times as large. The images are noise, which zstd cannot shrink, on a
local disk that the system has cached.

    python benchmarks/streaming.py [data.source=… any key=value]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bare import memory_of_process, report

from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.feed import Feed, make_feed
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.world import World
from pipeline.config.load import load_config
from pipeline.store.data.shards import load_split, write_split
from pipeline.store.data.splits import split_images
from pipeline.store.data.stored import StoredSplit
from pipeline.store.data.stream import StreamedSplit, window_bytes
from pipeline.store.model import build_model
from pipeline.store.run import Run, open_run

IMAGES, ROUNDS, BATCH = 40_960, 3, 128
SMALL, LARGE = (1, 28, 28), (3, 64, 64)
MEGABYTES = 200  # of the smaller data set
MEMORY_MB = 64  # train.memory_mb: windows of 16 MiB
SPEED_MB = 16  # of 4 MiB, eight an epoch
OVERRIDES = [
    "train.objective=elbo", "train.particles=1", f"train.batch_size={BATCH}", "train.epochs=1000",
    "model.network=conv", "model.latent_dim=16", "model.width=32", "model.depth=1",
]  # fmt: skip


def write(folder: Path, name: str, shape: tuple[int, int, int], count: int) -> Run:
    """A run with `count` training images of noise, of which no more than 200 MB differ."""
    run = open_run(load_config(None, [*OVERRIDES, f"storage={folder}", f"name={name}"]))
    distinct = min(count, MEGABYTES * 10**6 // int(np.prod(shape)))
    noise = np.random.default_rng(0).integers(0, 256, (distinct, *shape), dtype=np.uint8)

    def work(_: str) -> tuple[list[str], dict]:
        names = write_split(run.folder, "train", noise, None, 10_000, np.arange(count) % distinct)
        return names, {"source": "noise", "shape": list(shape), "counts": {"train": count}, "classes": []}

    run.stage("data", {}, work)
    return run


def read_epoch(feed: Feed, epoch: int, steps: int) -> float:
    """Seconds that an epoch's batches take when nobody uses them."""
    started = time.perf_counter()
    for step in range(epoch * steps, (epoch + 1) * steps):
        feed.batch(step)
    return time.perf_counter() - started


def speed(folder: Path, arguments: list[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = write(folder, "speed", SMALL, IMAGES)
    config = load_config(None, OVERRIDES + arguments)
    kinds = {"memory": load_split(run, "train").pixels, "streamed": StreamedSplit(run, "train", SPEED_MB)}
    phases, epochs = {}, {}
    for kind, images in kinds.items():
        model, validation = build_model(config, SMALL).to(device), torch.zeros(BATCH, *SMALL, dtype=torch.uint8)
        phases[kind] = AutoencoderPhase(model, images, validation, config.train, World(device=device), 0)
        epochs[kind] = phases[kind].epochs()
    training: dict[str, list[float]] = {kind: [] for kind in kinds}
    reading: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(ROUNDS + 1):
        for kind, phase in phases.items():
            next(epochs[kind])
            # A feed of its own each time: none has read ahead while the other kind had its turn.
            seconds = read_epoch(
                make_feed(kinds[kind], BATCH, World(device=device), 1), round_, phase.steps_per_epoch
            )
            time.sleep(1.0)  # until what is read ahead has been
            if round_:  # the first round warms both up
                training[kind].append(phase.history[-1]["images_per_s"])
                reading[kind].append(phase.steps_per_epoch * phase.batch / seconds)
    for what, rates in (("training", training), ("reading alone", reading)):
        ratio = statistics.median(s / m for s, m in zip(rates["streamed"], rates["memory"], strict=True))
        report(f"streamed / in memory, {what}, images/s", ratio, "higher")
        print(
            f"{device.type}, {torch.get_num_threads()} threads, {what}: {statistics.median(rates['memory']):,.0f} "
            f"images/s in memory, {statistics.median(rates['streamed']):,.0f} streamed, ratio {ratio:.3f}",
            flush=True,
        )


def peak(storage: str, name: str, memory_mb: int) -> None:
    """Read one epoch in this process; prints by how much that raised its peak."""
    keep_freed_memory()
    torch.set_num_threads(1)
    run = open_run(load_config(None, [f"storage={storage}", f"name={name}", f"train.memory_mb={memory_mb}"]))
    before, images = memory_of_process("VmRSS") / 1e6, split_images(run, "train")
    feed, steps = make_feed(images, BATCH, World(), 0), len(images) // BATCH
    rate = steps * BATCH / read_epoch(feed, 0, steps)
    grown = memory_of_process("VmHWM") / 1e6 - before
    print(json.dumps({"streamed": isinstance(images, StoredSplit), "MB": grown, "rate": rate}))


def memory(folder: Path) -> None:
    for times in (1, 4):
        count = times * MEGABYTES * 10**6 // int(np.prod(LARGE))
        run = write(folder, f"memory-{times}", LARGE, count)
        for memory_mb in (4096, MEMORY_MB):
            command = [sys.executable, __file__, "--peak", str(folder), run.config.name, str(memory_mb)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            kind = f"streamed, windows of {window_bytes(memory_mb) >> 20} MiB" if found["streamed"] else "in memory"
            print(
                f"{times * MEGABYTES} MB of images, {kind}: peak grows by {found['MB']:,.0f} MB, "
                f"{found['rate']:,.0f} images/s read",
                flush=True,
            )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--peak"]:
        peak(arguments[1], arguments[2], int(arguments[3]))
        return
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), arguments)
        memory(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
