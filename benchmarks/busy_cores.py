"""What training loses to other programs on the same cores: images/s of phase 1, idle and with busy loops beside.

    python benchmarks/busy_cores.py [--rounds 3] [--loops 2] [key=value …]

Each row is a training of its own, `python -m pipeline.train` on the bundled digits, without OMP_NUM_THREADS and with
OMP_NUM_THREADS=1; the settings take turns, so that a change of the machine's speed meets both. The fair share of a
process with n threads beside b busy loops on c cores is min(1, c / (n + b)) of what it does alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

__all__ = ["busy_loops", "images_per_second"]

ROOT = Path(__file__).parents[1]
SETTINGS = {"unset": None, "1": "1"}
SKIPPED = 5  # epochs, in which memory is not yet kept


def images_per_second(storage: str, threads: str | None, overrides: Sequence[str]) -> float:
    """The median over epochs of one training's phase 1, of a run of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": threads} if threads else {})
    command = [sys.executable, "-m", "pipeline.train", "--force", f"storage={storage}", "train.epochs=60"]
    command += ["sampler.steps=10", "sampler.checkpoint_steps=10", *overrides]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    records = map(json.loads, (Path(storage) / "digits/train/metrics.jsonl").read_text().splitlines())
    rates = [record["images_per_s"] for record in records if record["phase"] == "autoencoder"]
    return statistics.median(rates[SKIPPED:])


def busy_loops(count: int) -> ExitStack:
    """A context in which `count` processes do nothing, as fast as they can."""
    stack = ExitStack()
    for _ in range(count):
        process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        stack.callback(process.kill)
    return stack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    asked = parser.parse_intermixed_args()
    found: dict[tuple[str, int], list[float]] = {(name, b): [] for name in SETTINGS for b in (0, asked.loops)}
    with tempfile.TemporaryDirectory() as storage:
        prepare = [sys.executable, "-m", "pipeline.prepare", f"storage={storage}"]
        subprocess.run(prepare, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, check=True)
        for _ in range(asked.rounds):
            for name, loops in found:
                with busy_loops(loops):
                    found[name, loops].append(images_per_second(storage, SETTINGS[name], asked.overrides))
    lines = [f"{os.cpu_count()} cores", "| OMP_NUM_THREADS | busy loops | images/s, each round |", "|---|---|---|"]
    lines += [
        f"| {name} | {b} | {', '.join(f'{rate:,.0f}' for rate in rates)} |" for (name, b), rates in found.items()
    ]
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
