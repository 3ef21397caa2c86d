"""Phase 2: the sampler net learns to draw the aggregate of the encoder's posteriors."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ldcvae.directions.fields import Step
from ldcvae.directions.kernels import nearest_neighbour_distance
from ldcvae.directions.stein import amortised_loss
from ldcvae.encodings import Encodings
from ldcvae.metrics.diagnostics import variance_ratio
from ldcvae.metrics.latents import mmd2, sliced_wasserstein
from ldcvae.model import LDCVAE
from ldcvae.training.base import fit_base
from ldcvae.training.phase import Phase, Progress
from ldcvae.training.settings import SamplerSettings
from ldcvae.training.world import World, keyed_generator
from ldcvae.variants import DIRECTIONS

__all__ = ["SamplerPhase"]

_LEAST_UNIT = 0.01  # whitened: the rounding error of distances of latents is a tenth of it
_MOST_FOR_SCORES = 20  # dimensions in which score_difference is as stable as drift (docs/experiments.md)


def _direction(name: str, dim: int) -> str:
    """The direction's name; what auto stands for in so many dimensions."""
    if name != "auto":
        return name
    return "score_difference" if dim <= _MOST_FOR_SCORES else "drift"


class SamplerPhase(Phase):
    """Phase 2: the sampler net, on frozen encodings; no image is touched.

    Args:
        model: on its device; its whitening (and base) are fixed here, by rank 0 for all.
        encodings: of the training images, the same on all ranks.
        validation: encodings of the validation images.
        config: settings of this phase.
        world: this rank.
        seed: of draws.
        fused: fused Adam.
        state: of an earlier one, to go on from: nothing is fitted then, what it was fitted to stays. The model's own
            weights, whitening and base are loaded by the caller.
        fitted: whether the model's whitening and base are those of these encodings already: phase `decoder` fits them
            too.

    Attributes:
        base_kind: covariances of the base mixture: full, low_rank or diagonal; normal where the base is N(0, I).
    """

    name = "sampler"

    def __init__(
        self,
        model: LDCVAE,
        encodings: Encodings,
        validation: Encodings,
        config: SamplerSettings,
        world: World,
        seed: int,
        fused: bool = True,
        state: dict[str, Any] | None = None,
        fitted: bool = False,
    ):
        super().__init__(model.sampler, config.steps, config.learning_rate, 0.0, config.ema, fused)
        started = time.perf_counter()
        self.model, self.config, self.world, self.seed = model, config, world, seed
        self.encodings, self.validation = encodings, validation
        self.base_kind = model.config.base_kind if config.base == "gmm" else "normal"
        self.unit = torch.ones((), device=encodings.mean.device)
        if state is not None and "unit" in state:
            self.unit.copy_(state["unit"])
        else:
            # One rank for all, and never again: another kind of CPU, or number of them, would give other last bits.
            if world.rank == 0:
                self._fit(refit=state is None and not fitted)
            world.share([self.unit, *model.buffers()])
        self.direction = DIRECTIONS.find(_direction(config.direction, encodings.mean.shape[1]))
        self.bandwidths = [self.unit * width for width in config.bandwidths]
        self.floor = float(self.unit * config.floor)
        self.sampler = world.wrap(model.sampler)
        self.seconds = time.perf_counter() - started  # a base of hundreds of components takes as long as the net
        if state is not None:
            self.load(state)

    def _generator(self, purpose: str, step: int = 0) -> torch.Generator:
        return keyed_generator(self.encodings.mean.device, self.seed, purpose, step)

    def _fit(self, refit: bool) -> None:
        """Whitening, unit of bandwidths and base; only the unit for a checkpoint of 0.1, which does not hold it."""
        if refit:
            fit_base(self.model, self.encodings, self.config, self.seed)
        first = self._draw_targets(self._generator("unit"))
        if self.config.bandwidth_unit == "neighbour":
            # Where most images have a copy among the others, that distance is zero: kernels of no width.
            self.unit.copy_(nearest_neighbour_distance(first).clamp(min=_LEAST_UNIT))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from here; the model, which holds whitening and base, is the caller's."""
        return super().state() | {"unit": self.unit}

    def _draw_targets(self, generator: torch.Generator) -> Tensor:
        draws = self.encodings.draw(self.config.particles, generator, self.config.posterior_noise)
        return self.model.whitening.whiten(draws)

    def _losses(self) -> dict[str, Tensor]:
        config, n = self.config, self.config.particles
        generator = self._generator("particles", self.step)
        with torch.no_grad():
            targets, base = self._draw_targets(generator), self.model.draw_base(n, generator)
        rows = self.world.rows(n)
        own = self.sampler(base[rows])
        gather = self.world.stack if self.world.size > 1 else None
        with torch.no_grad():
            particles = self.world.gather(own)
            phi = self.direction.field(Step(particles, targets, self.bandwidths, self.floor, config, rows, gather))
        amortised_loss(own, phi).backward()
        return {"field_rms": phi.square().mean().sqrt(), "particle_rms": own.detach().square().mean().sqrt()}

    def blocks(self, length: int, progress: Progress | None = None) -> Iterator[int]:
        """Train from the current position; yields the step after every `length` steps and at the end.

        Raises:
            NonFiniteLossError: naming term and step, before the block counts as completed.
        """
        while self.step < self.total:
            started = said = time.perf_counter()
            first = self.step
            end = min(self.total, (self.step // length + 1) * length)
            while self.step < end:
                self.monitor.add(self.step, self._losses())
                self._update()
                if progress is not None and (now := time.perf_counter()) - said > 1.0:
                    said = now
                    rate = (self.step - first) * self.config.particles / (now - started)
                    progress({"phase": self.name, "done": self.step / self.total, "latents_per_s": rate})
            losses = self.monitor.read(self.world)
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            record: dict[str, Any] = {"phase": self.name, "step": self.step} | losses | self.validation_figures()
            record["latents_per_s"] = (self.step - first) * self.config.particles / elapsed
            record |= {"workers": self.world.size, "seconds": round(self.seconds, 3), "time": round(time.time(), 3)}
            self.history.append(record)
            if progress is not None:
                progress({"done": self.step / self.total} | record)
            yield self.step

    @torch.no_grad()
    def validation_figures(self) -> dict[str, float]:
        """How far sampler draws are from encoder draws of validation images, in whitened coordinates."""
        generator = keyed_generator(self.world.device, self.seed, "validation")
        n = min(2000, max(500, len(self.validation)))
        truth = self.model.whitening.whiten(self.validation.draw(n, generator))
        draws = self.averaged(self.model.draw_base(n, generator))
        return {
            "validation_mmd2": float(mmd2(draws, truth)),
            "validation_sliced_wasserstein": float(sliced_wasserstein(draws, truth, generator=generator)),
            "variance_ratio": float(variance_ratio(draws, truth)),
        }
