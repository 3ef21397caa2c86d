"""Memory of this process: what the C library does with what tensors have freed, and the peak."""

import ctypes
import mmap
import re
import sys
from pathlib import Path

__all__ = ["give_back_excess", "keep_freed_memory", "peak_mb", "reset_peak"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process; whether that could be arranged (it needs glibc).

    A training step frees hundreds of megabytes of activations that the next one wants again. By default glibc hands
    large blocks back to the kernel, which has to clear every page anew: a tenth of a step's time on a CPU
    (`benchmarks/training_step.py`).

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    return mallopt is not None and all([mallopt(_MMAP_THRESHOLD, 1 << 30), mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)])


def _trim() -> None:
    """Give all freed pages back to the kernel, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _resident_mb() -> float:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE / 1e6 if statm.exists() else 0.0


_level: float | None = None  # what was resident after the last trim


def give_back_excess(limit_mb: float = 1024.0) -> bool:
    """Give freed memory back once this process has grown by `limit_mb` since the last time; whether it did.

    glibc before 2.38 does not find freed aligned blocks again (its bug 14581), and all of torch's are aligned: the
    heap of a training on CPUs grows by megabytes a step, although nothing is held.

    Example:
        >>> give_back_excess(limit_mb=1e9)
        False
    """
    global _level
    resident = _resident_mb()
    if _level is not None and resident > _level + limit_mb:
        _trim()
        _level = _resident_mb()
        return True
    _level = resident if _level is None else min(_level, resident)
    return False


def reset_peak() -> None:
    """Start measuring anew: give freed memory back and forget the peak (Linux, where the kernel lets us)."""
    import torch  # here, as keeping memory, of a run that is done already too, needs none of it

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    _trim()
    if sys.platform.startswith("linux"):
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # some containers refuse: the peak is then the process's own
            return


def peak_mb() -> float | None:
    """Peak memory in MB since `reset_peak`: of the GPU where there is one, else of this process; None if unknown.

    Example:
        >>> reset_peak()
        >>> (peak_mb() or 1) > 0
        True
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 / 1e6 if found else None
