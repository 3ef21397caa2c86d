"""What a generator is fitted to, and how much it may spend: the one argument of every record's `fit`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ldcvae.encodings import Encodings, Whitening
from ldcvae.model import LDCVAE
from ldcvae.training.settings import SamplerSettings
from ldcvae.training.world import keyed_generator

__all__ = ["Budget", "Draw", "Fitting", "Kept", "TemperedDraw", "at_temperature"]

Draw = Callable[[int, torch.Generator], Tensor]
"""`(n, generator) -> (n, d)` latents, the generator on the device of the encodings."""


class TemperedDraw(Protocol):
    """A draw whose noise can be wider or narrower: what a record with `tempered` returns."""

    def __call__(self, n: int, generator: torch.Generator, temperature: float = 1.0, /) -> Tensor:
        """(n, d) latents, the noise that they start from times `temperature`."""


def at_temperature(draw: Draw, temperature: float) -> Draw:
    """A tempered draw at a temperature.

    Example:
        >>> wide = at_temperature(lambda n, noise, temperature=1.0: temperature * torch.ones(n, 1), 1.5)
        >>> wide(1, torch.Generator())
        tensor([[1.5000]])
    """
    return lambda n, noise: cast(TemperedDraw, draw)(n, noise, temperature)


@dataclass(frozen=True)
class Budget:
    """Numbers that several generators share.

    Attributes:
        sampler: size, steps, batch and rates of learnt generators.
        components: of the mixture whose components are not chosen.
        chain_steps: of Langevin and HMC: scores of the one, leapfrog steps of the other.
        chain_kernels: encodings whose density they walk; None: all.
        euler_steps: passes of flow matching.
        flow_transforms: of the autoregressive flow.
        bandwidths: direction -> bandwidths before their factor, where they are not the sampler's.
    """

    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    components: int = 10
    chain_steps: int = 120
    chain_kernels: int | None = 4096
    euler_steps: int = 50
    flow_transforms: int = 5
    bandwidths: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def trajectories(self) -> tuple[int, int]:
        """Of HMC, ten leapfrog steps each: one at every noise level, and those at the density itself.

        Example:
            >>> Budget(chain_steps=120).trajectories
            (10, 2)
        """
        levels = max(1, self.chain_steps // 12)
        return levels, max(1, self.chain_steps // 10 - levels)


class Kept(Protocol):
    """Checkpoints of a training that may be killed."""

    def load(self) -> dict[str, Any] | None:
        """The newest state, or None."""

    def save(self, state: dict[str, Any], progress: int) -> None:
        """Keep a state; `progress` grows."""


@dataclass
class Fitting:
    """A trained autoencoder and what to fit on it.

    Attributes:
        name: of the generator.
        model: on its device, with the whitening of the encodings.
        encodings: of the training images, on that device.
        held_out: of the validation images; nets that are trained here watch them.
        prior: means and log variances of a learnt prior's components; None for N(0, I).
        setting: of the generator's knob; None where it has none, or for its plain form.
        budget: shared numbers.
        seed: of everything that is drawn.
        noise: purpose -> generator on the device; None: keyed by seed, name and purpose.
        kept: checkpoints of a net's training, or None.
        seconds: what fitting took, where the fit itself knows better than the clock around it.

    Example:
        >>> from ldcvae import LDCVAE, LDCVAEConfig
        >>> from ldcvae.variants import GENERATORS
        >>> model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=2))
        >>> draw = GENERATORS["gaussian"].fit(Fitting("gaussian", model, model.encodings(torch.rand(50, 1, 8, 8))))
        >>> draw(5, torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """

    name: str
    model: LDCVAE
    encodings: Encodings
    held_out: Encodings | None = None
    prior: Encodings | None = None
    setting: float | None = None
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    noise: Callable[[str], torch.Generator] | None = None
    kept: Kept | None = None
    seconds: float | None = None

    @property
    def whitening(self) -> Whitening:
        """Of the encodings."""
        return self.model.whitening

    @property
    def dim(self) -> int:
        """d."""
        return self.encodings.mean.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the encodings are."""
        return self.encodings.mean.device

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers for a purpose, on the device."""
        if self.noise is not None:
            return self.noise(purpose)
        return keyed_generator(self.device, self.seed, "compare", self.name, purpose)

    def unwhitened(self, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A draw in whitened coordinates as one of latents; with a temperature where it has one."""
        return lambda n, noise, *temperature: self.whitening.unwhiten(draw(n, noise, *temperature))
