"""Every variant of the method and of what it is compared with: one record each.

To add one from outside this package, make a record and register it in a module of your own, and name that module as
`--plugin` on the command line (docs/plugins.md). Imports no torch: records refer to their code by `lazy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ldcvae.registry import Registry, lazy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ldcvae.directions.fields import Step
    from ldcvae.rivals.fitting import Budget, Draw, Fitting

__all__ = [
    "AUTOENCODERS",
    "BASE_KEYS",
    "DIRECTIONS",
    "GENERATORS",
    "NETWORKS",
    "Autoencoder",
    "Direction",
    "Generator",
    "Network",
    "sampler_net",
]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Network:
    """A pair of encoder and decoder.

    Attributes:
        name: how `model.network` calls it.
        encoder: `(image shape (C, H, W), latent_dim, width, depth)` -> module (B, C, H, W) -> (B, 2d), mean first.
        decoder: the same arguments -> module (B, d) -> (B, C, H, W) logits.
        multiple: image shape -> what both image sides must be divisible by.
        upsamples: whether `decoder` takes a fifth argument, of `ldcvae.config.UPSAMPLES`.
    """

    name: str
    encoder: Callable[[Shape, int, int, int], nn.Module]
    decoder: Callable[..., nn.Module]
    multiple: Callable[[Shape], int] = field(default=lambda shape: 1)
    upsamples: bool = False


NETWORKS: Registry[Network] = Registry("network")
for _name, _where in (("mlp", "networks"), ("conv", "networks"), ("resnet", "networks"), ("spatial", "spatial")):
    _encoder, _decoder, _multiple = (
        lazy(f"ldcvae.{_where}:{_name}_{part}") for part in ("encoder", "decoder", "multiple")
    )
    NETWORKS.register(Network(_name, _encoder, _decoder, _multiple, upsamples=_name != "mlp"))


@dataclass(frozen=True)
class Direction:
    """What a sampler net follows.

    Attributes:
        name: how `sampler.direction` calls it.
        label: on pages.
        field: `Step` -> (len(rows), d) direction at this rank's particles.
        knob: what `compare` chooses, a factor.
        bandwidths: dotted key of the bandwidths that the factor multiplies in `compare`.
    """

    name: str
    label: str
    field: Callable[[Step], Tensor]
    knob: str = "factor of the bandwidths"
    bandwidths: str = "sampler.bandwidths"


DIRECTIONS: Registry[Direction] = Registry("direction")
for _direction in (
    Direction("stein", "stein", lazy("ldcvae.directions.fields:stein"), bandwidths="compare.stein_bandwidths"),
    Direction("score_difference", "score difference", lazy("ldcvae.directions.fields:score_difference")),
    Direction(
        "drift",
        "drift",
        lazy("ldcvae.directions.fields:drift"),
        knob="factor of the temperatures",
        bandwidths="compare.drift_temperatures",
    ),
):
    DIRECTIONS.register(_direction)


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder of the comparison.

    Attributes:
        name: how `compare.autoencoders` calls it.
        label: on pages.
        encoder: train.objective of its own step, where `objective` is None.
        knob: what its setting is; None if there is nothing to choose.
        candidates: settings to choose from.
        whole: whether settings are whole numbers.
        temperature: `(train.inverse_temperature, setting)` -> lambda.
        objective: `(lambda, setting, likelihood, some)` -> a module that takes a step,
            `(encoder, decoder, images, noise) -> losses`, backward pass included; `some(n)` gives n training images.
            It may have `deterministic`, whether its posteriors are points, and `prior(encoder)`, the posteriors whose
            mixture it generates from.
        gibbs: LDC-VAE itself: trained with train.particles latents an image, and with train.consistency.
        prior: what its own prior is called on pages.
    """

    name: str
    label: str
    encoder: Literal["elbo", "svgd"] = "elbo"
    knob: str | None = None
    candidates: tuple[float, ...] = ()
    whole: bool = False
    temperature: Callable[[float, float], float] = field(
        default=lambda inverse_temperature, setting: inverse_temperature
    )
    objective: Callable[[float, float, str, Callable[[int], Tensor]], nn.Module] | None = None
    gibbs: bool = False
    prior: str = "prior N(0, I)"

    def passes(self, particles: int) -> int:
        """Latents that are decoded per image and step.

        Example:
            >>> AUTOENCODERS["vae"].passes(4), AUTOENCODERS["ldc_svgd"].passes(4)
            (1, 4)
        """
        return particles if self.gibbs else 1


AUTOENCODERS: Registry[Autoencoder] = Registry("autoencoder")
for _autoencoder in (
    Autoencoder("vae", "VAE"),
    Autoencoder(
        "beta_vae",
        "beta-VAE",
        knob="beta, weight of the KL",
        candidates=(0.25, 4.0, 16.0),
        # Adam cannot tell a KL multiplied by beta from a lambda divided by it.
        temperature=lambda plain, setting: plain / setting,
    ),
    Autoencoder(
        "wae_mmd",
        "WAE-MMD",
        knob="weight of the MMD penalty",
        candidates=(1.0, 10.0, 100.0),
        objective=lazy("ldcvae.rivals.objectives:wasserstein"),
    ),
    Autoencoder(
        "rae_l2",
        "RAE-L2",
        knob="weight of the latents' squared norm",
        candidates=(0.01, 0.1, 1.0),
        objective=lazy("ldcvae.rivals.objectives:regularised"),
    ),
    Autoencoder(
        "vampprior",
        "VampPrior VAE",
        knob="pseudo-inputs",
        candidates=(50.0, 100.0),
        whole=True,
        objective=lazy("ldcvae.rivals.objectives:vamp"),
        prior="VampPrior mixture",
    ),
):
    AUTOENCODERS.register(_autoencoder)
for _objective in ("elbo", "svgd"):
    AUTOENCODERS.register(
        Autoencoder(
            f"ldc_{_objective}",
            f"LDC-VAE, {_objective.upper()} encoder",
            encoder=_objective,
            knob="factor of lambda, train.inverse_temperature",
            candidates=(0.25, 1.0, 4.0),
            temperature=lambda plain, setting: plain * setting,
            gibbs=True,
        )
    )


@dataclass(frozen=True)
class Generator:
    """Where latents may come from, once an autoencoder is trained.

    Attributes:
        name: how `evaluate.generators` and `compare.generators` call it.
        label: on pages; may hold {components}, {euler_steps}, {chain_steps} and {prior}.
        fit: `Fitting` -> draw `(n, generator) -> (n, d)` latents.
        kind: closed (a draw in closed form), learnt (a network fitted to the encodings), chain (MCMC), net (a sampler
            net trained by its direction), own (the model's sampler net) or bound (it re-draws the encodings).
        knob: what its setting is; None if there is nothing to choose.
        candidates: settings to choose from.
        whole: whether settings are whole numbers.
        passes: `(budget, d)` -> passes of a network, or scores of a density, that a latent costs.
        reads: dotted keys of the configuration that its fit depends on; its figures are kept under their values.
        needs: package that must be installed, and how.
        fitted: whether there is anything to fit, whose seconds count.
        tempered: whether its draw takes a third argument, the factor of the noise that it starts from.
    """

    name: str
    label: str
    fit: Callable[[Fitting], Draw]
    kind: Literal["closed", "learnt", "chain", "net", "own", "bound"] = "learnt"
    knob: str | None = None
    candidates: tuple[float, ...] = ()
    whole: bool = False
    passes: Callable[[Budget, int], int] = field(default=lambda budget, dim: 0)
    reads: tuple[str, ...] = ()
    needs: tuple[str, str] | None = None
    fitted: bool = True
    tempered: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that can judge it: the model's own net is trained by `train`, the others' nets by `compare`."""
        return {"own": ("evaluate",), "net": ("compare",)}.get(self.kind, ("evaluate", "compare"))

    def title(self, budget: Any, prior: str = "prior N(0, I)") -> str:
        """The label, with the numbers of a `Budget`."""
        return self.label.format(
            components=budget.components, euler_steps=budget.euler_steps, chain_steps=budget.chain_steps, prior=prior
        )


_FITS = "ldcvae.rivals.fits"
_SIZE = tuple(f"sampler.{key}" for key in ("steps", "particles", "width", "depth", "ema", "posterior_noise"))
# What a sampler's base mixture depends on.
BASE_KEYS = ("sampler.base_components", "sampler.base_centres", "sampler.base_spread", "sampler.posterior_noise")
_CLOSED: dict[str, Any] = {"kind": "closed", "tempered": True}
_NOISE = "sampler.posterior_noise"
_COMPONENTS: dict[str, Any] = {"knob": "components", "candidates": (20.0, 50.0, 100.0), "whole": True}
_MIXTURE = lazy(f"{_FITS}:mixture")
_RATES: dict[str, Any] = {"knob": "learning rate", "candidates": (5e-4, 1e-3, 2e-3), "reads": _SIZE, "tempered": True}
_ONE_PASS = _RATES | {"passes": lambda budget, dim: 1}
_FLOW = _RATES | {"passes": lambda budget, dim: budget.euler_steps, "reads": (*_SIZE, "compare.euler_steps")}
_CHAIN: dict[str, Any] = {
    "kind": "chain",
    "knob": "least kernel width, in nearest-neighbour distances",
    "candidates": (0.03, 0.1, 0.2),
    "passes": lambda budget, dim: budget.chain_steps,
    "reads": ("evaluate.langevin_steps", "evaluate.chain_kernels", "sampler.particles"),  # the last: kernels' unit
}
_HMC = _CHAIN | {"passes": lambda budget, dim: 11 * sum(budget.trajectories)}  # a score more than leapfrog steps


def sampler_net(direction: Direction) -> Generator:
    """The generator that trains a sampler net by a direction.

    Example:
        >>> sampler_net(DIRECTIONS["drift"]).label
        'sampler net, drift'
    """
    keys = "bandwidth_unit kernel self_term smooth floor learning_rate ema base"
    return Generator(
        direction.name,
        f"sampler net, {direction.label}",
        lazy(f"{_FITS}:sampler_net"),
        "net",
        knob=direction.knob,
        candidates=(0.7, 1.0, 1.4),
        passes=lambda budget, dim: 1,
        reads=(*_SIZE, direction.bandwidths, *BASE_KEYS, *(f"sampler.{key}" for key in keys.split())),
        tempered=True,
    )


GENERATORS: Registry[Generator] = Registry("generator")
for _generator in (
    Generator("prior", "{prior}", lazy(f"{_FITS}:prior"), fitted=False, **_CLOSED),
    Generator("gaussian", "Gaussian fit", lazy(f"{_FITS}:gaussian"), **_CLOSED),
    Generator("gmm", "GMM, {components} components", _MIXTURE, reads=("evaluate.gmm_components", _NOISE), **_CLOSED),
    Generator("gmm_tuned", "GMM, components chosen", _MIXTURE, reads=(_NOISE,), **_COMPONENTS, **_CLOSED),
    Generator("two_stage", "second VAE (two-stage)", lazy(f"{_FITS}:two_stage"), **_ONE_PASS),
    Generator(
        "maf",
        "masked autoregressive flow",
        lazy(f"{_FITS}:autoregressive_flow"),
        passes=lambda budget, dim: dim * budget.flow_transforms,
        needs=("zuko", "pip install 'ldcvae[compare]'"),
        **_RATES,
    ),
    Generator("flow_matching", "flow matching, {euler_steps} steps", lazy(f"{_FITS}:flow_matching"), **_FLOW),
    Generator(
        "flow_matching_from_base",
        "flow matching from the mixture, {euler_steps} steps",
        lazy(f"{_FITS}:flow_matching_from_base"),
        **_FLOW | {"reads": (*_FLOW["reads"], *BASE_KEYS)},
    ),
    Generator("mean_flow", "MeanFlow", lazy(f"{_FITS}:mean_flow"), **_ONE_PASS),
    Generator("langevin", "annealed Langevin, {chain_steps} steps", lazy(f"{_FITS}:langevin_chain"), **_CHAIN),
    Generator("hmc", "annealed HMC, {chain_steps} steps", lazy(f"{_FITS}:hmc_chain"), **_HMC),
):
    GENERATORS.register(_generator)
for _direction in DIRECTIONS.values():
    GENERATORS.register(sampler_net(_direction))
GENERATORS.register(
    Generator(
        "sampler", "sampler net", lazy(f"{_FITS}:own_sampler"), "own", passes=lambda budget, dim: 1, tempered=True
    )
)
for _name, _label, _fit in (
    ("encoder", "encoder posterior", "posterior"),
    ("held_out", "encoder posterior, validation images", "held_out_posterior"),
):
    GENERATORS.register(Generator(_name, _label, lazy(f"{_FITS}:{_fit}"), "bound", fitted=False))
