"""Run stages as a user does, and kill their processes as a cluster does."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil

from pipeline.__main__ import main

ROOT = Path(__file__).parents[2]
TINY = [
    "name=tiny",
    "train.epochs=6",
    "train.checkpoint_epochs=2",
    "model.width=32",
    "sampler.width=32",
    "sampler.particles=64",
    "sampler.steps=60",
    "sampler.checkpoint_steps=20",
    "sample.num_images=120",
    "sample.batch_size=50",
    "evaluate.num_images=200",
    "evaluate.draws=2",
    "evaluate.langevin_steps=24",
    "evaluate.classifier_epochs=2",
    "ray.num_cpus=2",
]


def start(
    stage: str, storage: Path | str, *overrides: str, output: IO[str] | None = None, cwd: Path | None = None
) -> subprocess.Popen:
    """`python -m pipeline.<stage>` on the tiny configuration; its own process group; to pipes, or to one file."""
    command = [sys.executable, "-m", f"pipeline.{stage}", *TINY, f"storage={storage}", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    out, err = (subprocess.PIPE, subprocess.PIPE) if output is None else (output, subprocess.STDOUT)
    return subprocess.Popen(
        command, cwd=cwd, stdout=out, stderr=err, text=True, env=environment, start_new_session=True
    )


def finish(process: subprocess.Popen, expect: int = 0, timeout: float = 900) -> tuple[str, str]:
    """Wait for a stage; its output, after checking its exit status."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == expect, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


def run(stage: str, storage: Path | str, *overrides: str, expect: int = 0) -> tuple[str, str]:
    """Run a stage to its end."""
    return finish(start(stage, storage, *overrides), expect)


def here(stage: str, storage: Path | str, *words: str, expect: int = 0) -> tuple[str, str]:
    """As `run`, within this process: for what ends before Ray starts, and would spend its time on imports.

    Words are overrides, and options.
    """
    return within(stage, *TINY, f"storage={storage}", *words, expect=expect)


def within(stage: str, *words: str, expect: int = 0) -> tuple[str, str]:
    """A stage within this process, with nothing but these words; its output, after checking its exit status."""
    status = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        warnings.catch_warnings(),
    ):
        try:
            main(stage, list(words))
        except SystemExit as ended:
            status = int(ended.code or 0)
        finally:
            logging.captureWarnings(False)
    assert status == expect, f"exit {status}\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue(), err.getvalue()


def wait_for(condition: Callable[[], object], what: str, timeout: float = 300) -> None:
    """Poll until `condition()` is true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"no {what} within {timeout} s"
        time.sleep(0.05)


def descendants(process: subprocess.Popen | psutil.Process) -> list[psutil.Process]:
    """All processes that a stage has started."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_worker(process: subprocess.Popen | psutil.Process) -> None:
    """SIGKILL of one training process."""

    def workers() -> list[psutil.Process]:
        found = []
        for child in descendants(process):
            try:
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    wait_for(workers, "training worker")
    workers()[0].send_signal(signal.SIGKILL)


def kill_driver(process: subprocess.Popen) -> None:
    """SIGKILL of the driver; what it started has to go away by itself within 30 seconds."""
    wait_for_end(orphaned(process), 30)


def orphaned(process: subprocess.Popen) -> list[psutil.Process]:
    """SIGKILL of the driver; what it has started that must end by itself."""
    # Ray's two agents poll for their parent once a minute; whatever computes or writes must go at once.
    orphans = [child for child in descendants(process) if not child.name().endswith("Agent")]
    process.kill()
    process.communicate()
    return orphans


def wait_for_end(processes: list[psutil.Process], timeout: float) -> None:
    """They are gone within so many seconds."""
    _, alive = psutil.wait_procs(processes, timeout=timeout)
    assert not alive, f"left behind: {[p.name() for p in alive]}"


def flip(path: Path, where: float = 0.5) -> None:
    """One bit of a file, so far from its beginning."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1
    path.write_bytes(content)
