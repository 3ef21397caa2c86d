"""The generators that a configuration names, fitted to a trained model; how long they take to draw."""

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ldcvae.encodings import Encodings
from ldcvae.model import LDCVAE
from ldcvae.rivals.fitting import Budget, Draw, Fitting
from ldcvae.variants import DIRECTIONS, GENERATORS
from pipeline.config.load import read_keys
from pipeline.config.sections import Config

__all__ = ["TimedParts", "budget_of", "fitted", "timed_draw"]

_LEAST_SECONDS = 0.1


def budget_of(config: Config) -> Budget:
    """The numbers that generators share, from a configuration.

    Example:
        >>> budget_of(Config()).components
        10
    """
    bandwidths = read_keys(config, tuple(direction.bandwidths for direction in DIRECTIONS.values()))
    return Budget(
        sampler=config.sampler,
        components=config.evaluate.gmm_components,
        chain_steps=config.evaluate.langevin_steps,
        chain_kernels=config.evaluate.chain_kernels,
        euler_steps=config.compare.euler_steps,
        bandwidths={name: tuple(bandwidths[one.bandwidths]) for name, one in DIRECTIONS.items()},  # type: ignore[arg-type]
    )


def fitted(
    config: Config,
    model: LDCVAE,
    encodings: Encodings,
    held_out: Encodings | None,
    noise: Callable[[str], torch.Generator],
) -> Iterator[tuple[str, Draw]]:
    """The generators of `evaluate.generators`, each fitted to the training encodings when it is asked for.

    A knob has its plain value: for a learning rate the sampler's, for a chain no floor.

    Args:
        config: the run's configuration.
        model: trained, on its device.
        encodings: on that device.
        held_out: of the validation images, where generator held_out is asked for.
        noise: purpose -> generator on that device.
    """
    budget = budget_of(config)
    for name in config.evaluate.generators:
        fitting = Fitting(name, model, encodings, held_out, budget=budget, seed=config.seed, noise=noise)
        yield name, GENERATORS[name].fit(fitting)


def _seconds(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class TimedParts:
    """Parts as they come, and how long making them takes, without what is done with them in between.

    Attributes:
        seconds: so far.

    Example:
        >>> parts = TimedParts(iter([torch.zeros(2)]), torch.device("cpu"))
        >>> len(list(parts)), parts.seconds > 0
        (1, True)
    """

    def __init__(self, parts: Iterable[Tensor], device: torch.device):
        self._parts, self._device, self.seconds = iter(parts), device, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            started = _seconds(self._device)
            part = next(self._parts, None)
            self.seconds += _seconds(self._device) - started
            if part is None:
                return
            yield part


@torch.no_grad()
def timed_draw(draw: Draw, n: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """(n, d) latents and latents per second; a fast draw is repeated until it can be timed."""
    started = _seconds(generator.device)
    latents = draw(n, generator)
    elapsed, count = _seconds(generator.device) - started, n
    while elapsed < _LEAST_SECONDS:
        draw(n, generator)
        elapsed, count = _seconds(generator.device) - started, count + n
    return latents, count / elapsed
