"""Peak memory and time of the stages on data sets that a laptop cannot hold decoded.

Makes 2,000,000 images of 8x8 (grey PNG in Parquet) and 20,000 of 256x256 (colour JPEG in a folder), prepares each and
prints a table. Memory is the largest sum, over the command and all of its processes (Ray's and its object store
included), of the proportional set size: what is shared counts once. It is looked at five times a second.

    python benchmarks/large_data.py [--small N] [--large N] [--stages prepare,train,sample,evaluate] [key=value …]
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LIMIT_MIB = 4096
PNG_ROWS = 50_000  # of a row group
OVERRIDES = [
    "train.epochs=1", "train.objective=elbo", "train.particles=1", "train.memory_mb=256", "model.latent_dim=8",
    "model.network=conv", "model.width=16", "model.depth=1", "sampler.steps=100", "sampler.base=normal",
    "evaluate.draws=1", "evaluate.generators=[prior, sampler]", "evaluate.classifier_epochs=1", "ray.num_cpus=2",
    "ray.object_store_mb=200",
]  # fmt: skip


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def make_small(folder: Path, count: int) -> list[str]:
    """Parquet files of 8x8 PNG in ten classes, of which 20,000 differ."""
    rng = np.random.default_rng(0)
    distinct = [encoded(pixels, "PNG") for pixels in rng.integers(0, 256, (20_000, 8, 8), dtype=np.uint8)]
    schema = pa.schema({"image": pa.binary(), "label": pa.int64()})
    folder.mkdir()
    for number, first in enumerate(range(0, count, 500_000)):
        with pq.ParquetWriter(folder / f"part-{number:03d}.parquet", schema) as writer:
            for start in range(first, min(first + 500_000, count), PNG_ROWS):
                rows = rng.integers(0, len(distinct), min(PNG_ROWS, count - start))
                writer.write_table(pa.table([[distinct[row] for row in rows], rows % 10], schema=schema))
    return ["data.source=parquet", f"data.path={folder}", "data.images_per_shard=null"]


def make_large(folder: Path, count: int) -> list[str]:
    """Files of 256x256 JPEG in ten classes, of which 200 differ."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(x) for x in rng.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)]
    distinct = [encoded(np.asarray(image.resize((256, 256))), "JPEG") for image in coarse]
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number in range(count):
        (folder / str(number % 10) / f"{number:06d}.jpg").write_bytes(distinct[number % len(distinct)])
    return ["data.source=folder", f"data.path={folder}"]


def proportional_mib(process: psutil.Process) -> float:
    """Of a process and all that it has started, Ray's daemons included."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            text = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        total += next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total / 1024


def measure(stage: str, overrides: list[str]) -> tuple[float, float]:
    """Peak in MiB and seconds of `python -m pipeline.<stage>`."""
    started, peak = time.perf_counter(), 0.0
    command = [sys.executable, "-m", f"pipeline.{stage}", *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda pipe: said.extend(pipe), args=(process.stdout,))
        reader.start()
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, proportional_mib(watched))
            time.sleep(0.2)
        reader.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{''.join(said)}")
    return peak, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=2_000_000, help="images of 8x8; 0: none")
    parser.add_argument("--large", type=int, default=20_000, help="images of 256x256; 0: none")
    parser.add_argument("--stages", default="prepare", help="comma-separated, in order")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"limit {LIMIT_MIB:,} MiB\n\n| images | stage | peak MiB | seconds |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="large-data-") as temporary:
        for sides, count, make in ((8, options.small, make_small), (256, options.large, make_large)):
            if not count:
                continue
            source = make(Path(temporary) / str(sides), count)
            place = [f"storage={temporary}/runs", f"name=side-{sides}"]
            for stage in options.stages.split(","):
                peak, seconds = measure(stage, [*place, *source, *OVERRIDES, *options.overrides])
                over = " (over the limit)" if peak > LIMIT_MIB else ""
                print(f"| {count:,} of {sides}x{sides} | {stage} | {peak:,.0f}{over} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
