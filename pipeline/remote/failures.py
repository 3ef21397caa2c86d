"""Why remote work failed, in one line, and whether the same work may succeed another time."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch

from ldcvae.training.monitor import NonFiniteLossError
from pipeline.config.errors import PipelineError, StorageError
from pipeline.remote.memory import killed_memory

__all__ = [
    "Kind",
    "WorkerMemoryError",
    "failure_kind",
    "failure_reason",
    "is_lost",
    "is_out_of_memory",
    "kind_of_record",
]

Kind = Literal["transient", "final"]
"""Of a failure: whether the same work may succeed when it is tried again, or would end the same way."""

_MEMORY = (  # torch's, the C library's and Ray's words
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "running low on memory",
    "memory usage threshold",
)
# How a failure of an older record begins, or what it holds, when it may pass.
_PASSES = re.compile(
    r"^out of memory|^(WorkerCrashed|OutOfMemory|NodeDied|LocalRayletDied|ObjectLost|RaySystem|OwnerDied|ActorDied|OS"
    r"|Connection\w*|Timeout|Permission|FileNotFound)Error\b|process was lost|died unexpectedly"
)


class WorkerMemoryError(PipelineError):
    """A process found no memory; the message holds its peak and its limit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the CPU or a GPU, for the process itself or so that Ray killed it.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    known = torch.OutOfMemoryError | MemoryError | WorkerMemoryError
    return isinstance(error, known) or any(word in str(error) for word in _MEMORY)


def is_lost(error: BaseException) -> bool:
    """Whether the process that worked is gone, or its node, or what it needed of Ray's object store."""
    import ray.exceptions

    if isinstance(inner := getattr(error, "health_check_failure", None), Exception):  # as Ray Train wraps it
        error = inner
    raised = ray.exceptions.RayTaskError  # an error of the work itself, from another process
    return isinstance(error, ray.exceptions.RayError) and not isinstance(error, raised)


def failure_kind(error: BaseException) -> Kind:
    """Whether the same work may succeed another time: memory ran out, a process or node was lost, storage failed.

    Example:
        >>> failure_kind(MemoryError()), failure_kind(OSError("timed out")), failure_kind(ValueError("got 3"))
        ('transient', 'transient', 'final')
    """
    if isinstance(error, NonFiniteLossError):
        return "final"
    passes = is_out_of_memory(error) or isinstance(error, OSError | StorageError) or is_lost(error)
    return "transient" if passes else "final"


def kind_of_record(record: Mapping[str, Any], text: str = "failure") -> Kind:
    """The kind of a kept failure; of one kept before there were kinds, by its words.

    Args:
        record: with `kind`, or without.
        text: key of the reason.

    Example:
        >>> kind_of_record({"failure": "out of memory: CUDA"}), kind_of_record({"failure": "kl is not finite"})
        ('transient', 'final')
    """
    if (kind := record.get("kind")) is not None:
        return "transient" if kind == "transient" else "final"
    return "transient" if _PASSES.search(str(record.get(text, ""))) else "final"


def _lost(error: BaseException, text: str) -> str:
    """A lost process or node in Ray's words, the ones that say something."""
    if re.search(r"its node has died|node died|raylet died", text):
        return "its node was lost"
    if "died" in text:
        detail = re.search(r"Worker exit detail: (.*?)\.?(?: Some common causes|$)", text)
        return "its process was killed or crashed" + (f" ({detail[1]})" if detail else "")
    return f"{type(error).__name__}: {text}"


def failure_reason(error: BaseException, memory: str = "") -> str:
    """Why a trial, a cell or a worker failed, in one line.

    Args:
        error: as it was raised where the work was done, or as Ray gives it.
        memory: what the failed process can say of its memory (`own_memory`), where it is this one.

    Example:
        >>> failure_reason(MemoryError())
        'out of memory'
        >>> failure_reason(MemoryError(), "peak 1.0 GiB, limit 2.0 GiB of the node")
        'out of memory (peak 1.0 GiB, limit 2.0 GiB of the node)'
    """
    text = " ".join(str(error).split())
    if isinstance(error, NonFiniteLossError):
        return f"{error.term} is not finite at step {error.step}"
    if isinstance(error, WorkerMemoryError):
        return text
    if is_out_of_memory(error):
        memory = memory or killed_memory(str(error))
        about = f" ({memory})" if memory else ""
        if is_lost(error) or "running low on memory" in text or "memory usage threshold" in text:
            return f"out of memory{about}: Ray killed the process"  # whose own text is a page long
        return f"out of memory{about}: {text}"[:300].removesuffix(": ")
    if is_lost(error):
        return _lost(error, text)[:300]
    return f"{type(error).__name__}: {text}"[:300]
