"""The ranks of a data-parallel run and the random numbers they share.

Every random number of training comes from a generator keyed by (seed, purpose, position), drawn for the whole
world and sliced by rank. So any number of processes sees the same permutation, noise and particles, and the state
of the generators is a function of the position: a resumed run needs nothing but its step.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["World", "keyed_generator", "seeded_weights"]


def keyed_generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator whose stream is fixed by `key`, independent between keys.

    Example:
        >>> a, b = keyed_generator("cpu", 0, "noise", 7), keyed_generator("cpu", 0, "noise", 7)
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        True
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest))


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Networks built in it, on the CPU, have initial weights that `seed` fixes; the caller's random numbers go on.

    Example:
        >>> with seeded_weights(0):
        ...     a = nn.Linear(2, 2)
        >>> with seeded_weights(0):
        ...     b = nn.Linear(2, 2)
        >>> bool((a.weight == b.weight).all())
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which sets those of GPUs too
        yield


@dataclass(frozen=True)
class World:
    """This process's place among the ranks.

    Attributes:
        rank: from 0.
        size: number of ranks.
        device: where this rank computes.
        wrap: makes a network's gradients the mean over ranks (DDP); identity for one rank.

    Example:
        >>> World().rows(8)
        slice(0, 8, None)
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network

    def rows(self, count: int) -> slice:
        """This rank's part of `count` rows; equal parts, so that a mean of means is the mean.

        Raises:
            ValueError: if the rows don't divide evenly.
        """
        if count % self.size:
            raise ValueError(f"{count} rows do not divide evenly over {self.size} ranks")
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values into the tensors of all ranks, in place: what is fitted once must not differ in a bit."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """The mean over ranks into the tensors, in place, by one message: gradients of a network without `wrap`."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            flat /= self.size
            for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all ranks in rank order, without gradient: (size · n, …) from (n, …)."""
        part = part.detach()
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def stack(self, tensor: Tensor) -> Tensor:
        """A tensor of every rank, (size, …) in rank order, without gradient."""
        return self.gather(tensor[None])
