"""Losses of a training loop, summed on the device: nothing waits for them until somebody reads them."""

from typing import Any

import torch
from torch import Tensor

from ldcvae.training.world import World

__all__ = ["LossMonitor", "NonFiniteLossError"]


_ALONE = World()


class NonFiniteLossError(ArithmeticError):
    """A term of the loss became NaN or infinite.

    Attributes:
        term: its name.
        step: the first step at which it happened.
    """

    def __init__(self, term: str, step: int):
        super().__init__(f"{term} is not finite at step {step}")
        self.term, self.step = term, step


class LossMonitor:
    """Running means of named losses and the first step at which each was not finite.

    Example:
        >>> monitor = LossMonitor()
        >>> monitor.add(0, {"loss": torch.tensor(1.0)})
        >>> monitor.add(1, {"loss": torch.tensor(3.0)})
        >>> monitor.read()
        {'loss': 2.0}
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums = self._first_bad = torch.empty(0)
        self._count = 0

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Take the 0-d losses of one step, without waiting for the device."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        if self._count == 0:
            self._names = list(losses)
            self._sums, self._first_bad = torch.zeros_like(values), torch.full_like(values, -1.0, dtype=torch.float64)
        self._sums += values
        new = ~torch.isfinite(values) & (self._first_bad < 0)
        self._first_bad.masked_fill_(new, step)
        self._count += 1

    def read(self, world: World = _ALONE) -> dict[str, float]:
        """Means over steps and ranks since the last read; starts anew.

        Args:
            world: every rank must call this at the same step, so that all of them stop together.

        Raises:
            NonFiniteLossError: naming the first step at which a term was not finite on any rank, and the term.
        """
        if self._count == 0:
            return {}
        means = self._over_ranks(world) / self._count
        self._count = 0
        return dict(zip(self._names, means.tolist(), strict=True))

    def settle(self, world: World = _ALONE) -> None:
        """Make the sums so far the mean over ranks, so that one rank's `state` stands for all of them.

        Raises:
            NonFiniteLossError: as `read`.
        """
        if self._count:
            self._sums = self._over_ranks(world).to(self._sums.dtype)

    def _over_ranks(self, world: World) -> Tensor:
        """The sums, in float64, as the mean over ranks."""
        every = world.gather(torch.stack([self._sums.double(), self._first_bad])[None])
        bad = [(step, term) for rank in every[:, 1].tolist() for term, step in enumerate(rank) if step >= 0]
        if bad:
            # Terms are ordered from the sum to its parts; at one step the last is the most specific.
            step = min(step for step, _ in bad)
            self._count = 0
            raise NonFiniteLossError(self._names[max(term for at, term in bad if at == step)], int(step))
        return every[:, 0].mean(0)

    def state(self) -> dict[str, Any]:
        """The finite losses since the last read, as a checkpoint keeps them; `settle` comes first."""
        return {"names": self._names, "sums": self._sums, "count": self._count}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from `state`."""
        self._names, self._sums, self._count = state["names"], state["sums"].to(device), state["count"]
        self._first_bad = torch.full_like(self._sums, -1.0, dtype=torch.float64)
