"""The directions that phase 2 follows, each a function of one `Step`, with records in `ldcvae.variants`."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ldcvae.densities.kernel_mixture import KernelMixture
from ldcvae.directions import stein as stein_kernels
from ldcvae.directions import two_sample
from ldcvae.training.settings import SamplerSettings

__all__ = ["Step", "drift", "score_difference", "stein"]


class Step(NamedTuple):
    """What a direction is computed from, once a step.

    Attributes:
        particles: (n, d) sampler draws of all ranks.
        targets: (n, d) encoder draws of all ranks.
        bandwidths: bandwidths or temperatures in the particles' units, 0-d tensors.
        floor: least kernel width of an energy made of the targets, in the particles' units.
        settings: of the sampler phase.
        rows: the particles of this rank, whose directions are wanted.
        gather: `(…) -> (ranks, …)`, a tensor of every rank, stacked; None where there is one rank.
    """

    particles: Tensor
    targets: Tensor
    bandwidths: Sequence[Tensor]
    floor: float
    settings: SamplerSettings
    rows: slice = slice(None)
    gather: two_sample.Gather | None = None


def stein(step: Step) -> Tensor:
    """Classical SVGD on a kernel estimate of the latent energy: see `ldcvae.directions.stein.stein_direction`.

    Example:
        >>> import torch
        >>> z = torch.randn(8, 2)
        >>> stein(Step(z, z + 1, [torch.tensor(0.5)], 0.3, SamplerSettings(), slice(0, 4))).shape
        torch.Size([4, 2])
    """
    # A fresh estimate of the density each step, as smooth as its floor.
    score = KernelMixture(step.targets, floor=step.floor).score(step.particles)
    return stein_kernels.stein_direction(
        step.particles,
        score,
        step.bandwidths,
        step.settings.kernel,
        self_term=step.settings.self_term,
        normalise=True,
        rows=step.rows,
    )


def score_difference(step: Step) -> Tensor:
    """See `ldcvae.directions.two_sample.score_difference`."""
    return two_sample.score_difference(
        step.particles, step.targets, step.bandwidths, smooth=step.settings.smooth, rows=step.rows
    )


def drift(step: Step) -> Tensor:
    """See `ldcvae.directions.two_sample.drift`."""
    return two_sample.drift(step.particles, step.targets, step.bandwidths, rows=step.rows, gather=step.gather)
