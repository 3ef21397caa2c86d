"""What others are measured against: the least that computes the same, without this project.

Importing it makes `ldcvae` importable where it is not installed: from this repository, and without two of its
dependencies, which nothing that is measured needs.
"""

import importlib.util
import json
import os
import sys
import time
import types
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "advance",
    "bare_direction",
    "bare_step",
    "matmul_flops",
    "memory_of_process",
    "parameters",
    "report",
    "timed",
]


def timed(work: Callable[[], Any], device: torch.device, seconds: float, warm: int = 3) -> float:
    """Mean seconds of a call, over calls for about `seconds`, after a few that warm up.

    Example:
        >>> timed(lambda: None, torch.device("cpu"), 0.01) < 0.01
        True
    """

    def lap(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    lap(warm)
    one = lap(1)
    calls = max(1, min(10_000, round(seconds / max(one, 1e-5))))
    return lap(calls) / calls


def memory_of_process(key: str) -> int:
    """Bytes by /proc: VmRSS now, VmHWM at most; not getrusage's peak, which includes that of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def report(name: str, ratio: float, better: str, goal: float | None = None) -> None:
    """Hand a ratio to `benchmarks/suite.py`, where that is what runs the script.

    Args:
        name: what over what.
        ratio: measured in this run.
        better: higher or lower.
        goal: what it has to reach.
    """
    if path := os.environ.get("BENCH_RESULTS"):
        with open(path, "a") as file:
            print(json.dumps({"name": name, "ratio": ratio, "better": better, "goal": goal}), file=file)


def bare_step(model: Any, optimizer: torch.optim.Optimizer, images: Tensor, temperature: float) -> None:
    """A VAE's step as a tutorial would write it: encode, draw, decode, bound, update.

    Args:
        model: with networks `encoder` and `decoder`.
        optimizer: of their weights.
        images: (B, C, H, W) in [0, 1], in the networks' memory format.
        temperature: lambda, weight of the reconstruction loss.
    """
    mean, log_variance = model.encoder(images).float().chunk(2, dim=1)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    reconstruction = functional.mse_loss(torch.sigmoid(model.decoder(latents).float()), images, reduction="sum")
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    optimizer.zero_grad(set_to_none=True)
    ((temperature * reconstruction + kl) / len(images)).backward()
    optimizer.step()


def bare_direction(particles: Tensor, targets: Tensor, widths: Sequence[Tensor], elements: int = 2**22) -> Tensor:
    """What no direction of phase 2 can leave out: two products, and for each bandwidth two softmaxes and sums.

    Args:
        particles: (n, d); targets likewise.
        targets: see `particles`.
        widths: bandwidths, 0-d tensors.
        elements: of a block's matrix.
    """
    rows = max(1, elements // len(particles))
    out = torch.zeros_like(particles)
    for start in range(0, len(particles), rows):
        for other in (particles, targets):
            products = particles[start : start + rows] @ other.T
            for width in widths:
                out[start : start + rows] += torch.softmax(products / width**2, 1) @ other
    return out


def advance(phase: Any, steps: int = 1) -> None:
    """Take steps of a phase without what comes with an epoch or a block: validation, progress, checkpoints."""
    for _ in range(steps):
        phase.monitor.add(phase.step, phase._losses())
        phase._update()


def matmul_flops(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
    """Floating-point operations a second of square matrix products: what the device gives at most.

    Example:
        >>> matmul_flops(torch.device("cpu"), torch.float32, 64, 0.01) > 0
        True
    """
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b, device, seconds)


def parameters(model: Any) -> list[nn.Parameter]:
    """Of encoder and decoder."""
    return [*model.encoder.parameters(), *model.decoder.parameters()]


def _stand_in() -> None:
    """Empty modules for two dependencies of `ldcvae` where they are missing."""
    if importlib.util.find_spec("huggingface_hub") is None:
        hub = types.ModuleType("huggingface_hub")
        hub.PyTorchModelHubMixin = type(  # type: ignore[attr-defined]
            "PyTorchModelHubMixin", (), {"__init_subclass__": classmethod(lambda cls, **options: None)}
        )
        hub.ModelCard = type("ModelCard", (), {})  # type: ignore[attr-defined]
        sys.modules["huggingface_hub"] = hub
    if importlib.util.find_spec("annotated_types") is None:
        rules = types.ModuleType("annotated_types")
        for name, fields in {"Ge": "ge", "Gt": "gt", "Le": "le", "Lt": "lt"}.items():
            setattr(rules, name, _rule(name, (fields,)))
        rules.Len = _rule("Len", ("min_length", "max_length"))  # type: ignore[attr-defined]
        rules.MinLen, rules.MaxLen = _rule("MinLen", ("min_length",)), _rule("MaxLen", ("max_length",))  # type: ignore[attr-defined]
        sys.modules["annotated_types"] = rules


def _rule(name: str, fields: tuple[str, ...]) -> type:
    return namedtuple(name, fields, defaults=[None] * (len(fields) - 1))  # type: ignore[misc]


sys.path.append(str(Path(__file__).parents[1]))
_stand_in()
