"""Seconds before anything happens: importing the library, and a run that is up to date already.

python benchmarks/start.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from bare import report

SMALL = [
    "train.epochs=1", "sampler.steps=20", "sampler.base_components=2", "evaluate.draws=1",
    "evaluate.generators=[sampler]", "evaluate.classifier_epochs=1", "sample.num_images=100",
    "evaluate.num_images=100",
]  # fmt: skip
GOALS = {"import ldcvae": 1.5, "a finished run again": 2.0}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as storage:
        run = ["-m", "pipeline.run", f"storage={storage}", *SMALL]
        print(f"a first run of the least size: {seconds(run):.1f} s", flush=True)
        works = {"import ldcvae": ["-c", "import ldcvae"], "a finished run again": run}
        bare = statistics.median(seconds(["-c", "pass"]) for _ in range(5))
        for name, command in works.items():
            found = statistics.median(seconds(command) for _ in range(5))
            print(f"{name}: {found:.2f} s (Python alone {bare:.2f}); goal {GOALS[name]} s")
            report(f"{name}, seconds", found, "lower", GOALS[name])


if __name__ == "__main__":
    main()
