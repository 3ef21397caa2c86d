"""Peak memory of training, sampling and judging on a generated data set: the summed PSS of all of their processes.

    python benchmarks/reading_memory.py --images 200000 --size 8 [--memory-mb 64] [--source DIR] [key=value …]

Writes `--images` images of noise of `--size` pixels as Parquet shards, as `prepare` leaves them (70 % train, 10 %
validation, 20 % test), then runs `train`, `sample` and `evaluate` on them, each for itself, and looks at the
proportional set sizes of the stage's process and all of its children five times a second. `--source` names another
checkout of this project to measure.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from pipeline.config.load import load_config
from pipeline.store.data.shards import write_split
from pipeline.store.run import open_run

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
DISTINCT = 32 * 2**20  # bytes of noise that differ: the generator must not need more memory than what is measured
KEYS = [
    "train.epochs=1", "train.batch_size=16", "train.objective=elbo", "train.particles=1", "model.width=16",
    "model.depth=1", "sampler.width=32", "sampler.particles=64", "sampler.steps=20", "sampler.checkpoint_steps=20",
    "sampler.base_components=2", "sample.num_images=2000", "evaluate.num_images=2000", "evaluate.draws=1",
    "evaluate.generators=[sampler]", "evaluate.extractor=random", "ray.num_cpus=1", "train.device=cpu",
]  # fmt: skip


def write_data(storage: Path, images: int, size: int) -> int:
    """A prepared data set without labels, `name=memory`; bytes of its pixels."""
    run = open_run(load_config(None, [f"storage={storage}", "name=memory"]))
    shape = (1 if size < 32 else 3, size, size)
    distinct = min(images, max(1, DISTINCT // int(np.prod(shape))))
    noise = np.random.default_rng(0).integers(0, 256, (distinct, *shape), dtype=np.uint8)
    counts = {split: round(images * share) for split, share in SHARES.items()}

    def work(_: str) -> tuple[list[str], dict]:
        names = []
        for split, count in counts.items():
            per_shard = max(1, DISTINCT // int(np.prod(shape)))
            names += write_split(run.folder, split, noise, None, per_shard, np.arange(count) % distinct)
        return names, {"source": "noise", "shape": list(shape), "counts": counts, "classes": []}

    run.stage("data", {}, work)
    return images * int(np.prod(shape))


def pss(process: psutil.Process) -> int:
    """Bytes of a process and all that it has started; what several share counts once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue  # gone, or not ours to look at
    return total


def measure(command: list[str], environment: dict[str, str], where: str) -> tuple[int, float]:
    """Peak of the summed PSS in bytes, and seconds.

    Raises:
        RuntimeError: if the command fails, with what it said.
    """
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, env=environment, cwd=where, stdout=said, stderr=subprocess.STDOUT)
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                peak = max(peak, pss(process))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
        if child.wait():
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{said.read()}")
    return peak, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=8, help="pixels per side; from 32 up in colour")
    parser.add_argument("--memory-mb", type=int, default=64, help="train.memory_mb")
    parser.add_argument("--source", default=str(Path(__file__).parents[1]), help="checkout to measure")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    environment = os.environ | {"PYTHONPATH": options.source, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as storage:
        pixels = write_data(Path(storage), options.images, options.size)
        print(f"{options.images:,} images of {options.size} pixels: {pixels / 1e6:,.0f} MB", flush=True)
        keys = [
            *KEYS,
            f"train.memory_mb={options.memory_mb}",
            *options.overrides,
            f"storage={storage}",
            "name=memory",
        ]
        for stage in ("train", "sample", "evaluate"):
            peak, seconds = measure([sys.executable, "-m", f"pipeline.{stage}", *keys], environment, options.source)
            print(f"{stage}: {peak / 1e6:,.0f} MB at most, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
