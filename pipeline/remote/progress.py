"""Progress of remote work in the driver's terminal: a bar on a terminal, a line every few seconds in a log."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from pipeline.store.manifest import say

__all__ = ["Display", "board", "describe"]

_LINE_EVERY = 10.0  # seconds, where the output is no terminal


def describe(record: dict[str, Any]) -> str:
    """The figures of a progress record that a person watches, in one short line.

    Example:
        >>> describe({"phase": "sampler", "done": 0.5, "latents_per_s": 12345.6, "validation_mmd2": 0.00123})
        '12,346 latents/s, validation mmd2 0.00123'
    """
    parts = []
    for name, value in record.items():
        if name.endswith("_per_s"):
            parts.append(f"{value:,.0f} {name.removesuffix('_per_s')}/s")
        elif name in ("reconstruction", "kl", "discriminator", "adversarial", "field_rms") or name.startswith(
            "validation_"
        ):
            parts.append(f"{name.replace('_', ' ')} {value:.3g}")
    return ", ".join(parts)


class Display:
    """Shows fractions of named phases with figures and the time left.

    Args:
        title: put before every line.
    """

    def __init__(self, title: str):
        self.title = title
        self._bar: tqdm[Any] | None = None
        self._phase = ""
        self._first = (0.0, 0.0)
        self._said = time.monotonic()
        self._figures: dict[str, Any] = {}

    def update(self, record: dict[str, Any], note: str = "") -> None:
        """Show a record with `phase`, `done` (0..1) and figures, or a note instead; figures stay until renewed."""
        now = time.monotonic()
        if record["phase"] != self._phase:
            self.close()
            self._phase, self._first, self._figures = record["phase"], (now, record["done"]), {}
            if sys.stderr.isatty():
                form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
                self._bar = tqdm(desc=f"{self.title} {self._phase}", total=1.0, bar_format=form, dynamic_ncols=True)
                self._bar.initial = self._bar.n = record["done"]
        self._figures |= record
        text = note or describe(self._figures)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(record["done"] - self._bar.n)
        elif now - self._said > _LINE_EVERY:
            self._said = now
            say(f"{self.title}: {self._phase} {record['done']:.0%}, {self._left(now, record['done'])}{text}")

    def _left(self, now: float, done: float) -> str:
        started, at = self._first
        if done - at < 1e-6:
            return ""
        left = round((now - started) / (done - at) * (1.0 - done))
        return f"{left // 60}:{left % 60:02d} left, "

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Board:
    """Ray actor that holds the newest record and every message; workers write without waiting."""

    def __init__(self) -> None:
        self._record: dict[str, Any] = {}
        self._messages: list[str] = []
        self._failures: list[str] = []

    def write(self, record: dict[str, Any]) -> None:
        self._record = record

    def say(self, message: str) -> None:
        self._messages.append(message)

    def fail(self, reason: str) -> None:
        self._failures.append(reason)

    def read(self) -> tuple[dict[str, Any], list[str], list[str]]:
        return self._record, self._messages, self._failures


@contextmanager
def board(title: str) -> Iterator[Any]:
    """A Ray actor handle: `write.remote(record)` shows a record here, `say.remote(message)` prints a line.

    It also counts what failed: `fail.remote(reason)`. `read` gives the last record, the messages and the reasons.
    """
    import ray

    actor: Any = ray.remote(num_cpus=0)(_Board).remote()
    stop, display = threading.Event(), Display(title)

    def watch() -> None:
        shown: dict[str, Any] = {}
        said = 0
        while not stop.wait(0.5):
            try:
                record, messages, _ = ray.get(actor.read.remote(), timeout=5)
            except ray.exceptions.RayError:
                continue  # the actor's node is gone or busy: progress is not worth failing for
            for message in messages[said:]:
                say(f"{title}: {message}")
            said = len(messages)
            if record and record != shown:
                display.update(record)
                shown = record
        display.close()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        stop.set()
        thread.join(timeout=10)
        ray.kill(actor)
