"""Settings of the training phases: fields, defaults, bounds and meanings, defined once.

The library's `fit` takes them as they are; the pipeline's configuration sections inherit from them. Imports no torch.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen
from typing_extensions import Doc

from ldcvae.registry import OneOf
from ldcvae.variants import DIRECTIONS

__all__ = [
    "Auto",
    "AutoencoderSettings",
    "Count",
    "DecoderSettings",
    "Fraction",
    "NotNegative",
    "Positive",
    "SamplerSettings",
    "mistakes",
]

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]
# YAML reads on/off/yes/no as booleans; "auto" is what is right for the device.
Auto = bool | Literal["auto"]


@dataclass(frozen=True)
class _Settings:
    """Checks its fields when it is made.

    Raises:
        ValueError: with every mistake, naming field, value and what is allowed.
    """

    def __post_init__(self) -> None:
        found = mistakes(self)
        if not found and (reason := self.conflict()):
            found = [reason]
        if found:
            raise ValueError("; ".join(found))

    def conflict(self) -> str:
        """Why fields that are fine one by one don't fit together, naming the field first; empty if they do."""
        return ""


@dataclass(frozen=True)
class AutoencoderSettings(_Settings):
    """Phase 1: encoder and decoder follow the Gibbs posterior of the training images.

    Example:
        >>> AutoencoderSettings(epochs=0)
        Traceback (most recent call last):
        ValueError: epochs must be at least 1, got 0
    """

    objective: Annotated[
        Literal["elbo", "svgd"],
        Doc("svgd: the encoder follows M Stein particles per image; elbo: reparametrised bound"),
    ] = "svgd"
    particles: Annotated[int, Ge(1), Le(64), Doc("M, latents per image and step")] = 4
    inverse_temperature: Annotated[Positive, Doc("lambda, weight of the reconstruction loss")] = 40.0
    consistency: Annotated[
        Fraction, Doc("share of the learnt latent energy in the encoder's target; 0: the standard normal only")
    ] = 0.0
    consistency_floor: Annotated[
        Positive, Doc("least standard deviation of a kernel of that energy, in latent units")
    ] = 0.5
    epochs: Annotated[Count, Doc("passes over the training images")] = 300
    batch_size: Annotated[Count, Doc("images per step, over all workers")] = 64
    learning_rate: Annotated[Positive, Doc("Adam's peak rate, cosine to zero")] = 1e-3
    weight_decay: Annotated[float, Ge(0), Doc("decoupled weight decay")] = 0.0
    ema: Annotated[float, Ge(0), Lt(1), Doc("decay of the averaged weights; 0: none")] = 0.999
    bf16: Annotated[Auto, Doc("bfloat16 autocast of all but the last layers; auto: on GPUs that have it")] = "auto"
    channels_last: Annotated[Auto, Doc("NHWC memory; auto: on for convolutional networks")] = "auto"
    fused: Annotated[Auto, Doc("fused Adam; auto: on")] = "auto"
    compile: Annotated[Auto, Doc("torch.compile; auto: off")] = "auto"

    def conflict(self) -> str:
        """Two particles at least for SVGD."""
        if self.objective == "svgd" and self.particles < 2:
            return (
                f"particles is {self.particles}, but objective 'svgd' needs at least 2: particles of one image "
                "repel each other; use objective 'elbo' for 1"
            )
        return ""


@dataclass(frozen=True)
class DecoderSettings(_Settings):
    """The phase between the two: the decoder is trained on against a discriminator, the encoder stays as it is.

    Example:
        >>> DecoderSettings(epochs=8).adversarial
        4.0
        >>> DecoderSettings(perceptual=1.0)
        Traceback (most recent call last):
        ValueError: perceptual is 1.0, but perceptual_weights names no file with a network for it
    """

    epochs: Annotated[int, Ge(0), Doc("passes over the training images; 0: the decoder stays as phase 1 left it")] = 0
    adversarial: Annotated[
        NotNegative,
        Doc("weight of the discriminator's loss beside the reconstruction loss summed over pixels; 0: none"),
    ] = 4.0
    adaptive: Annotated[
        bool, Doc("multiply that weight by the ratio of both losses' gradients at the decoder's last layer")
    ] = False
    adaptive_cap: Annotated[Positive, Doc("the most that this ratio may be")] = 1e4
    perceptual: Annotated[NotNegative, Doc("weight of a distance in the features of perceptual_weights; 0: none")] = (
        0.0
    )
    perceptual_weights: Annotated[
        str | None,
        Doc("TorchScript file, in the pipeline its URL too: images (B, C, H, W) in [0, 1] to features, or a list"),
    ] = None
    noise: Annotated[
        NotNegative,
        Doc("standard deviation of extra noise on latents, in whitened units: 1 is as wide as all latents"),
    ] = 0.0
    sampler_draws: Annotated[
        Fraction, Doc("share of the decoded images shown to the discriminator that come from draws of sampler.base")
    ] = 0.0
    judged: Annotated[
        float, Gt(0), Le(1), Doc("share of every batch that the discriminator sees; its time goes with it")
    ] = 0.35
    width: Annotated[Count, Doc("channels of the discriminator's first convolution")] = 32
    warm_up: Annotated[int, Ge(0), Doc("steps of the discriminator before its gradient reaches the decoder")] = 0
    batch_size: Annotated[Count | None, Doc("images per step, over all workers; null: as in phase 1")] = None
    learning_rate: Annotated[Positive, Doc("the decoder's rate of Adam, linear to zero")] = 2e-4
    discriminator_learning_rate: Annotated[Positive, Doc("the discriminator's")] = 4e-4
    ema: Annotated[float, Ge(0), Lt(1), Doc("decay of the decoder's averaged weights; 0: none")] = 0.999

    def conflict(self) -> str:
        """A perceptual loss needs a network."""
        if self.perceptual > 0 and self.perceptual_weights is None:
            return f"perceptual is {self.perceptual}, but perceptual_weights names no file with a network for it"
        return ""

    def judged_of(self, batch: int) -> int:
        """How many images of a batch the discriminator sees: one at least.

        Example:
            >>> DecoderSettings(judged=0.35).judged_of(64), DecoderSettings(judged=0.01).judged_of(64)
            (22, 1)
        """
        return max(1, int(batch * self.judged + 1e-9))

    @property
    def features_file(self) -> str | None:
        """The file of the network that this phase needs for its perceptual loss; None where it needs none."""
        return self.perceptual_weights if self.epochs > 0 and self.perceptual > 0 else None

    @property
    def fits_base(self) -> bool:
        """Whether this phase fits the sampler's base, which the sampler phase then takes as it is."""
        return self.epochs > 0 and self.adversarial > 0 and self.sampler_draws > 0


@dataclass(frozen=True)
class SamplerSettings(_Settings):
    """Phase 2: the net that draws latents in one forward pass.

    Example:
        >>> SamplerSettings(direction="drift", bandwidths=[0.12, 0.3, 0.6]).particles
        512
    """

    direction: Annotated[
        str,
        OneOf(DIRECTIONS, "auto"),
        Doc("what the sampler follows; auto: score_difference up to 20 latent dimensions, drift above"),
    ] = "auto"
    bandwidths: Annotated[
        tuple[Positive, ...],
        Len(1, 16),
        Doc("kernel bandwidths (score_difference, stein) or temperatures (drift)"),
    ] = (0.13, 0.23, 0.42)
    bandwidth_unit: Annotated[
        Literal["neighbour", "absolute"],
        Doc("neighbour: the median nearest-neighbour distance of encoder draws; absolute: whitened"),
    ] = "neighbour"
    kernel: Annotated[Literal["rbf", "imq", "laplace"], Doc("kernel of direction stein")] = "rbf"
    self_term: Annotated[bool, Doc("direction stein: keep i = j; collapses, here to show that")] = False
    smooth: Annotated[bool, Doc("direction score_difference: average the field over particles")] = False
    floor: Annotated[
        Positive, Doc("direction stein: least kernel width of the energy, in units of bandwidth_unit")
    ] = 0.3
    particles: Annotated[int, Ge(4), Le(65536), Doc("n, latents per step, over all workers")] = 512
    posterior_noise: Annotated[Fraction, Doc("share of the posterior's standard deviation in the targets")] = 1.0
    base: Annotated[Literal["normal", "gmm"], Doc("what the net transforms: N(0, I) or a fitted mixture")] = "gmm"
    base_components: Annotated[Count, Doc("components of base gmm")] = 10
    base_centres: Annotated[
        Count,
        Doc("centres a component, which share its covariance; each has at least four images. Full covariances only"),
    ] = 1
    base_spread: Annotated[
        float,
        Gt(0),
        Le(1),
        Doc("standard deviation of base gmm about its centres, as a factor: below 1 draws lie nearer to images"),
    ] = 1.0
    width: Annotated[Count, Doc("hidden units of the residual MLP")] = 256
    depth: Annotated[Count, Doc("residual blocks")] = 3
    steps: Annotated[Count, Doc("updates")] = 1250
    learning_rate: Annotated[Positive, Doc("Adam's peak rate, cosine to zero")] = 1e-3
    ema: Annotated[float, Ge(0), Lt(1), Doc("decay of the averaged weights; 0: none")] = 0.995
    checkpoint_steps: Annotated[Count, Doc("steps between checkpoints and validations of phase 2")] = 500

    @property
    def base_shape(self) -> tuple[int, int]:
        """Components of the base, 0 for N(0, I), and centres of each.

        Example:
            >>> SamplerSettings(base_components=5).base_shape, SamplerSettings(base="normal").base_shape
            ((5, 1), (0, 1))
        """
        return (self.base_components, self.base_centres) if self.base == "gmm" else (0, 1)


def mistakes(settings: Any) -> list[str]:
    """What is wrong with the fields of a settings object, one sentence each.

    Args:
        settings: a dataclass whose annotations hold types, bounds of `annotated_types` and `OneOf`.

    Example:
        >>> mistakes(AutoencoderSettings())
        []
    """
    hints = get_type_hints(type(settings), include_extras=True)
    found = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if reason := _wrong(value, hints[field.name]):
            found.append(f"{field.name} {reason}, got {value!r}")
    return found


def _wrong(value: Any, annotation: Any) -> str:
    """Why a value is not what its annotation says; empty if it is."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *rules = arguments
        return _wrong(value, inner) or next((reason for rule in rules if (reason := _breaks(rule, value))), "")
    if origin is Literal:
        return "" if value in arguments else f"must be one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return "must be a list"
        return next((reason for item in value if (reason := _wrong(item, arguments[0]))), "")
    if origin is not None or not isinstance(annotation, type):  # a union
        reasons = [_wrong(value, member) for member in arguments]
        return "" if "" in reasons else " or ".join(reasons)
    if annotation is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return "must be a number"
        return "" if -float("inf") < value < float("inf") else "must be finite"
    if annotation is int and isinstance(value, bool):
        return "must be a whole number"
    names = {int: "a whole number", bool: "true or false", str: "a text"}
    return "" if isinstance(value, annotation) else f"must be {names.get(annotation, annotation.__name__)}"


def _breaks(rule: Any, value: Any) -> str:
    match rule:
        case Ge(ge=least) if not value >= least:
            return f"must be at least {least}"
        case Gt(gt=least) if not value > least:
            return f"must be above {least}"
        case Le(le=most) if not value <= most:
            return f"must be at most {most}"
        case Lt(lt=most) if not value < most:
            return f"must be below {most}"
        case MinLen(min_length=least) if len(value) < least:
            return f"needs at least {least}"
        case MaxLen(max_length=most) if len(value) > most:
            return f"takes at most {most}"
        case Len(min_length=least, max_length=most) if not least <= len(value) <= (most or len(value)):
            return f"needs {least} to {most} values"
        case OneOf():
            try:
                rule.check(value)
            except ValueError as error:
                return str(error)
    return ""
