"""What the C library does with memory that tensors have freed."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

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
