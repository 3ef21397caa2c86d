"""Writing images to Parquet: what share of the time is the decoder's, and whether memory grows with their number.

The networks of configs/fashion_mnist.yaml, untrained: weights do not change the work. Stage `sample`'s own batches, a
process for each number of images.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py [--images 5000 50000]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from bare import memory_of_process, report

from ldcvae.encodings import Encodings
from ldcvae.model import LDCVAE
from ldcvae.training.base import fit_base
from ldcvae.training.heap import keep_freed_memory
from pipeline.config.load import load_config
from pipeline.sample import draw
from pipeline.store.model import build_model
from pipeline.store.run import open_run

SHAPE = (1, 28, 28)
SPENT: Counter[str] = Counter()


def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its seconds counted."""

    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        found = work(*arguments, **options)
        SPENT[name] += time.perf_counter() - started
        return found

    return call


def write(images: int, storage: str) -> dict[str, float]:
    """Seconds of everything, and the peak memory above what the process had before."""
    keep_freed_memory()
    config = load_config("configs/fashion_mnist.yaml", [f"storage={storage}", "sampler.base_components=30"])
    run, size = open_run(config), config.sample.batch_size
    torch.manual_seed(0)
    model = build_model(config, SHAPE).eval()
    encodings = Encodings(
        torch.randn(2000, config.model.latent_dim), torch.full((2000, config.model.latent_dim), -2.0)
    )
    fit_base(model, encodings, config.sampler, 0)
    draw._model = lambda *_: model  # type: ignore[assignment]
    LDCVAE.sample_latents = timed("sampler net", LDCVAE.sample_latents)  # type: ignore[method-assign]
    LDCVAE.decode = timed("decoder", LDCVAE.decode)  # type: ignore[method-assign]
    draw.encode_shard = timed("parquet", draw.encode_shard)
    before = memory_of_process("VmRSS")
    started = time.perf_counter()
    for batch, first in enumerate(range(0, images, size)):
        job = {
            "run": run,
            "batch": batch,
            "first": first,
            "size": min(size, images - first),
            "digest": "",
            "device": "cpu",
        }
        draw._write_batch(job)
    whole = time.perf_counter() - started
    peak = (memory_of_process("VmHWM") - before) / 2**20
    return {"images": images, "seconds": whole, "peak_mib": peak} | dict(SPENT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--one", type=int, help="so many, in this process, and print what it took")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage:
        if arguments.one:
            return print(json.dumps(write(arguments.one, storage)))
    found = []
    for images in arguments.images:
        command = [sys.executable, __file__, "--one", str(images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        found.append(row)
        shares = ", ".join(
            f"{name} {row[name] / row['seconds']:.0%}" for name in ("decoder", "sampler net", "parquet")
        )
        rate, peak = images / row["seconds"], row["peak_mib"]
        print(f"{images:,} images: {rate:,.0f}/s; {shares}; {peak:.0f} MiB above the start", flush=True)
    most = found[-1]
    report("sampling, the decoder's share", most["decoder"] / most["seconds"], "higher", 0.8)
    report(
        f"sampling, peak of {most['images']:,} / {found[0]['images']:,}",
        most["peak_mib"] / max(found[0]["peak_mib"], 1.0),
        "lower",
        1.2,
    )
    return None


if __name__ == "__main__":
    main()
