"""Why remote work failed, in one line."""

import torch

from ldcvae.training.monitor import NonFiniteLossError

__all__ = ["failure_reason"]


def failure_reason(error: Exception) -> str:
    """Why a trial or a cell failed, in one line.

    Example:
        >>> failure_reason(MemoryError())
        'out of memory'
    """
    text = " ".join(str(error).split())
    if isinstance(error, NonFiniteLossError):
        return f"{error.term} is not finite at step {error.step}"
    memory = ("out of memory", "can't allocate memory", "not enough memory")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in text for word in memory):
        return f"out of memory: {text}"[:300].removesuffix(": ")
    return f"{type(error).__name__}: {text}"[:300]
