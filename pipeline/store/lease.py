"""Who works in a run's folder: one process at a time, on any storage.

The holder's name lies in `lock.json`, renewed every few seconds. A second process says who holds the run and stops.
What a dead process has left is taken over: at once where its end can be seen (same machine), else when it has not
been renewed for `EXPIRY` seconds.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config.errors import PipelineError
from pipeline.store.folder import Folder
from pipeline.store.schema import Holder, parse_as

__all__ = ["EXPIRY", "LOCK", "held"]

LOCK = "lock.json"
EXPIRY = 30.0
"""Seconds without a renewal after which a holder counts as dead; clocks of machines must agree to some seconds."""

_RENEWED_EVERY = 5.0
_SETTLE = 0.5  # seconds in which two processes that take over the same lock at once see who was last
_ENDING = 2.0  # seconds that a killed process may take to end, on a busy machine


def _machine() -> str:
    """This machine and container: where process numbers mean the same."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(namespace) if namespace.exists() else ''}".strip()


def _born(pid: int) -> str:
    """When a process started, so that a number that is used again is not taken for it; empty if it is gone.

    One that has ended and whose parent has not asked for it yet (a zombie) is gone too: it writes no more.
    """
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            state, *fields = stat.read_text().rpartition(")")[2].split()
            return "" if state in "ZX" else fields[18]
        except (OSError, IndexError):
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # alive, somebody else's
    return "alive"


def _is_dead(holder: dict[str, Any]) -> bool:
    if time.time() - holder["renewed"] > EXPIRY:
        return True
    return bool(holder["machine"] == _machine() and _born(holder["pid"]) != holder["born"])


def _ends(holder: dict[str, Any]) -> bool:
    """Whether a holder is dead, or is so in a moment: who kills a run and starts it again need not wait between."""
    deadline = time.monotonic() + (_ENDING if holder["machine"] == _machine() else 0)
    while not (dead := _is_dead(holder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return dead


def _read(folder: Folder) -> dict[str, Any] | None:
    """The holder, or None; a lock that cannot be read is nobody's."""
    try:
        holder: dict[str, Any] = parse_as(Holder, folder.read(LOCK), LOCK, "")
    except PipelineError:
        return None
    return holder


def _refuse(folder: Folder, holder: dict[str, Any]) -> None:
    machine = holder["machine"].partition(" ")[0]
    raise PipelineError(
        f"{folder.url} is in use: process {holder['pid']} on {machine} has been working in it since "
        f"{holder['since']} ({holder['what']}). Wait for it or stop it; if it is gone, the same command goes on "
        "within a minute. Another name=… makes a run of its own"
    )


class _Lease:
    """This process's hold on a folder."""

    def __init__(self, folder: Folder, what: str):
        self.folder = folder
        self.content: dict[str, Any] = {
            "owner": uuid.uuid4().hex,
            "machine": _machine(),
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "what": what,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def _bytes(self) -> bytes:
        return json.dumps(self.content | {"renewed": time.time()}).encode()

    def _other(self) -> dict[str, Any] | None:
        """Who holds the folder in this process's place, or None."""
        holder = _read(self.folder)
        return holder if holder is not None and holder["owner"] != self.content["owner"] else None

    def take(self) -> None:
        """Make the folder this process's.

        Raises:
            PipelineError: naming who holds it.
        """
        if not self.folder.create(LOCK, self._bytes()):
            # Not ourselves: where a request's answer is lost, its repetition finds the lock that it has made itself.
            holder = self._other()
            if holder is not None and not _ends(holder):
                _refuse(self.folder, holder)
            self.folder.write(LOCK, self._bytes())
            time.sleep(_SETTLE)
            if (winner := self._other()) is not None:
                _refuse(self.folder, winner)
        self._thread.start()

    def _renew(self) -> None:
        while not self._stop.wait(_RENEWED_EVERY):
            try:
                if self._other() is not None:
                    # Suspended for longer than EXPIRY, and another process went on: two must not write.
                    print(f"\nerror: another process has taken over {self.folder.url}", file=sys.stderr, flush=True)
                    # No exception in the main thread: it may sit inside a library, and background jobs ignore SIGINT.
                    os._exit(1)
                self.folder.write(LOCK, self._bytes())
            except PipelineError:
                continue  # the storage's fault: the next renewal may work, before EXPIRY is over

    def give_back(self) -> None:
        """Let the next process in."""
        self._stop.set()
        self._thread.join()
        try:
            if self._other() is None:
                self.folder.remove(LOCK)
        except PipelineError:
            pass  # it expires


@contextmanager
def held(folder: Folder, what: str) -> Iterator[None]:
    """The folder for this process alone, for the duration of a block.

    Args:
        folder: the run's.
        what: what is done in it, for who else asks.

    Raises:
        PipelineError: naming the process that holds it.

    Example:
        >>> import tempfile
        >>> folder = Folder(tempfile.mkdtemp())
        >>> with held(folder, "train"):
        ...     with held(folder, "report"):
        ...         pass
        Traceback (most recent call last):
        pipeline.config.errors.PipelineError: ...is in use: process ... (train). Wait for it...
        >>> folder.exists(LOCK)
        False
    """
    lease = _Lease(folder, what)
    lease.take()
    try:
        yield
    finally:
        lease.give_back()
