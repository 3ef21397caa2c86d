"""What the training phases share: optimizer, schedule, averaged weights, position, history.

The phases are free of Ray: state in, checkpoints and progress out. They keep everything on the device, never wait
for it between two reads of the losses, and draw all randomness from generators keyed by the step, so that a
resumed run and a run on more ranks follow the same path.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ldcvae.training.heap import give_back_excess
from ldcvae.training.monitor import LossMonitor

__all__ = ["Cast", "Phase", "Progress", "running_average", "split_last_layer"]

_TRIM_STEPS = 16  # steps between looks at the heap

Progress = Callable[[dict[str, Any]], None]


def running_average(network: nn.Module, ema: float, step: Callable[[], int]) -> AveragedModel:
    """Exponentially averaged weights and buffers of a network; `update_parameters(network)` after every step.

    Args:
        network: to start from; it is copied.
        ema: decay, reached by a warm-up: a short run must not keep a share of its initial weights.
        step: steps taken so far, the one just made included.

    Example:
        >>> network = nn.Linear(1, 1, bias=False)
        >>> average = running_average(network, 0.5, lambda: 100)
        >>> with torch.no_grad():
        ...     _ = network.weight.add_(1.0)
        >>> average.update_parameters(network)
        >>> bool(torch.isclose(average.module.weight, network.weight - 0.5))
        True
    """

    return _Average(network, ema, step).requires_grad_(False).eval()


class _Average(AveragedModel):
    """AveragedModel's own update copies a count to the device, for which a GPU's queue has to run empty."""

    def __init__(self, network: nn.Module, ema: float, step: Callable[[], int]):
        super().__init__(network, use_buffers=True)
        self.ema, self.taken = ema, step

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """A step towards the network's weights and buffers."""
        (averages, counts), (values, new_counts) = _state_of(self.module), _state_of(model)
        if counts:  # of batches
            torch._foreach_copy_(counts, new_counts)
        if averages:
            taken = self.taken()
            torch._foreach_lerp_(averages, values, 1.0 - min(self.ema, (1.0 + taken) / (10.0 + taken)))


def _state_of(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(numbers, counts) among weights and buffers."""
    tensors = [*network.parameters(), *network.buffers()]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]


class Cast(nn.Module):
    """A network under bfloat16 autocast; its last layer, like the Stein mathematics around it, computes in float32.

    What a network says of means, variances and pixels has 24 bits then, not 8. The last layer is found in an
    `nn.Sequential`, as this package's networks are; a module of another kind is autocast as a whole.

    Args:
        network: used as it is where autocast is off.
        enabled: whether to autocast.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.Linear(2, 1))
        >>> [len(part) for part in Cast(network, True).parts]
        [2, 1]
    """

    def __init__(self, network: nn.Module, enabled: bool):
        super().__init__()
        self.network, self.enabled = network, enabled
        self.parts = split_last_layer(network)  # a tuple, which registers no module a second time

    def forward(self, x: Tensor) -> Tensor:
        """The network's output in float32."""
        if not self.enabled:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=False):
                return self.network(x).float()
        body, last = self.parts
        with torch.autocast(x.device.type, torch.bfloat16):
            for layer in body:
                x = layer(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=False):
            x = x.float()
            for layer in last:
                x = layer(x)
        return x.float()


def split_last_layer(network: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """(what comes before the last layer with weights, that layer and the rest), to be called one after the other."""
    layers = _in_order(network)
    weighted = [position for position, layer in enumerate(layers) if any(True for _ in layer.parameters())]
    if not weighted:
        return layers, []
    last = layers[weighted[-1]]
    # A module of modules may compute anything inside, and weights of another type want inputs of it.
    # What a parametrization makes of them, as spectral norm does, is the layer's own.
    inside = any(name != "parametrizations" for name, _ in last.named_children())
    plain = not inside and all(w.dtype == torch.float32 for w in last.parameters())
    start = weighted[-1] + (0 if plain else 1)
    return layers[:start], layers[start:]


def _in_order(network: nn.Module) -> list[nn.Module]:
    """The modules that an `nn.Sequential` calls, those of one inside another too."""
    if type(network) is not nn.Sequential:  # one with a forward of its own may do otherwise
        return [network]
    return [layer for child in network for layer in _in_order(child)]


class Phase:
    """An optimizer with its schedule, averaged weights, a position and a history; shared by all phases.

    Args:
        network: to train, and to average.
        total: steps.
        rate: Adam's peak rate.
        decay: decoupled weight decay.
        ema: decay of the averaged weights; 0: none.
        fused: fused Adam.
        betas: of Adam.
        more: parameter groups beside the network's own, as torch's optimizers take them.
    """

    name = ""

    def __init__(
        self,
        network: nn.Module,
        total: int,
        rate: float,
        decay: float,
        ema: float,
        fused: bool,
        betas: tuple[float, float] = (0.9, 0.999),
        more: Sequence[dict[str, Any]] = (),
    ):
        self.network = network
        self.step = 0
        self.total = total
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        groups: list[dict[str, Any]] = [{"params": list(network.parameters())}, *more]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=decay, fused=fused)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._share_of_rate)
        self.average = running_average(network, ema, lambda: self.step) if ema else None
        self.monitor = LossMonitor()

    def _share_of_rate(self, step: int) -> float:
        """What is left of the peak rate: a cosine to zero."""
        return 0.5 * (1.0 + math.cos(math.pi * min(step / self.total, 1.0)))

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.step += 1
        if self.step % _TRIM_STEPS == 0:
            give_back_excess()
        if self.average is not None:
            self.average.update_parameters(self.network)

    @property
    def averaged(self) -> nn.Module:
        """The network to judge and to keep: averaged weights where there are any."""
        return self.average.module if self.average is not None else self.network

    def adopt_average(self) -> None:
        """Put the averaged weights into the model, at the phase's end."""
        self.network.load_state_dict(self.averaged.state_dict())

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from here."""
        return {
            "phase": self.name,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "average": self.average.module.state_dict() if self.average is not None else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the model's own weights are loaded by the caller."""
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.optimizer.load_state_dict(state["optimizer"])
        for weight, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    # In the weight's memory format, which a checkpoint does not keep: fused Adam pairs numbers by
                    # their place in memory, and would take those of other weights without a word.
                    kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        for group, base in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = base * self._share_of_rate(self.schedule.last_epoch)
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
