"""How much memory a process has had and may have, in a few words: measured here, or read from what Ray says."""

import os
import re
from pathlib import Path

import torch

from ldcvae.training.heap import peak_mb
from pipeline.config.sections import Config

__all__ = [
    "in_gib",
    "kernel_kills",
    "killed_memory",
    "kills_since",
    "limit_bytes",
    "own_memory",
    "what_to_lower",
]

_GIB = 2**30
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of version 2 and 1


def limit_bytes() -> tuple[int, str] | None:
    """(bytes, of what) that bound this process: its GPU's, else its container's or its machine's; None if unknown.

    Example:
        >>> limit, what = limit_bytes()
        >>> limit > 2**20, what in ("GPU", "container", "node")
        (True, True)
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory, "GPU"
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no POSIX
        return None
    for name in _CGROUPS:
        try:
            limit = int(Path(name).read_text())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        if limit < whole:
            return limit, "container"
    return whole, "node"


def in_gib(megabytes: float) -> str:
    """Megabytes, as `peak_mb` gives them, in words.

    Example:
        >>> in_gib(5583.0)
        '5.2 GiB'
    """
    return f"{megabytes * 1e6 / _GIB:.1f} GiB"


def own_memory() -> str:
    """This process's peak and its limit; empty where neither is known.

    Example:
        >>> own_memory().startswith("peak ")
        True
    """
    peak, limit = peak_mb(), limit_bytes()
    parts = [] if peak is None else [f"peak {in_gib(peak)}"]
    if limit is not None:
        parts.append(f"limit {limit[0] / _GIB:.1f} GiB of the {limit[1]}")
    return ", ".join(parts)


def killed_memory(text: str) -> str:
    """Peak and limit of what Ray's memory monitor has killed, from its message; empty where it says neither.

    Args:
        text: of Ray 2.60 or earlier: its wording is not promised, so whatever is not found is left out.

    Example:
        >>> killed_memory("Memory on the node (IP: 10.0.0.1, ID: 3a) was 23.1GB / 24GB (0.96), which exceeds the …")
        'the node used 23.1 of 24 GiB'
    """
    killed = re.findall(r"Selected to kill:.*?actual memory used=([\d.]+)\s*GB", text)
    # Before Ray 2.56 only the list of the largest processes tells; those of other programs are none of ours.
    killed = killed or re.findall(r"^\d+\s+([\d.]+)\s+ray::", text, re.MULTILINE)
    parts = [f"peak {max(map(float, killed)):.1f} GiB"] if killed else []
    if limit := re.search(r"exceeded threshold of (\d+)\s*B", text):
        parts.append(f"Ray's limit {int(limit[1]) / _GIB:.1f} GiB")
    if node := re.search(r"\bwas ([\d.]+)\s*GB(?: used)? / ([\d.]+)\s*GB", text):
        parts.append(f"the node used {float(node[1]):.3g} of {float(node[2]):.3g} GiB")
    return ", ".join(parts)


def kernel_kills() -> int | None:
    """How many processes this machine's kernel has killed for want of memory since it started; None if unknown.

    Example:
        >>> (kernel_kills() or 0) >= 0
        True
    """
    try:
        found = re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def kills_since(before: int | None) -> bool:
    """Whether the kernel of this machine has killed for memory since `kernel_kills()` was `before`."""
    now = kernel_kills()
    return before is not None and now is not None and now > before


def what_to_lower(config: Config, *keys: str) -> str:
    """Keys of the configuration that take memory, with their values; a key whose value is 0 has nothing to give.

    Example:
        >>> what_to_lower(Config(), "sampler.particles", "train.memory_mb")
        'lower sampler.particles (now 512) or train.memory_mb (now 4096)'
    """
    values = [(key, getattr(getattr(config, section), name)) for key in keys for section, name in [key.split(".")]]
    *more, last = [f"{key} (now {value})" for key, value in values if value]
    return "lower " + (f"{', '.join(more)} or {last}" if more else last)
