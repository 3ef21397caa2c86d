"""What `fit` and `fit_sampler` are given, checked before the first step."""

import torch
from torch import Tensor

from ldcvae.discriminator import LEAST_SIDE
from ldcvae.model import LDCVAE
from ldcvae.training.settings import DecoderSettings, SamplerSettings
from ldcvae.training.world import keyed_generator

__all__ = ["check_phases", "check_trainable", "misfits", "split_given"]

_HELD_OUT = 10  # one image in so many validates, where no validation images are given
_MOST_HELD_OUT = 5000


def misfits(count: int, side: int, decoder: DecoderSettings, sampler: SamplerSettings) -> list[str]:
    """Why settings of phases do not suit the training images, one sentence each, which begins with the key.

    Args:
        count: how many training images there are.
        side: of an image, the smaller one, in pixels.
        decoder: settings of phase `decoder`.
        sampler: settings of phase 2.

    Example:
        >>> misfits(50, 8, DecoderSettings(), SamplerSettings(base_components=300))
        ['sampler.base_components: 300, with 50 training images; at most one for each']
    """
    found = []
    if sampler.base_shape[0] > count:
        components = f"sampler.base_components: {sampler.base_components:,}"
        found.append(f"{components}, with {count:,} training images; at most one for each")
    if decoder.epochs and decoder.adversarial and side < LEAST_SIDE:
        small = f"images of {side} pixels are too small for the discriminator, which needs {LEAST_SIDE}; use 0"
        found.append(f"decoder.adversarial: {small}")
    return found


def check_phases(train: Tensor, decoder: DecoderSettings | None, sampler: SamplerSettings) -> None:
    """Nothing for images and settings that no phase will refuse.

    Raises:
        ValueError: naming the setting, what it needs and what there is.
    """
    if reasons := misfits(len(train), min(train.shape[2:]), decoder or DecoderSettings(), sampler):
        raise ValueError("; ".join(reasons))
    if decoder is not None and decoder.epochs == 0 and decoder != DecoderSettings():
        raise ValueError("decoder has settings, but epochs=0, which is no such phase; e.g. DecoderSettings(epochs=8)")


def check_trainable(model: LDCVAE, between: bool) -> None:
    """Nothing for a model whose autoencoder can be trained.

    Args:
        model: given to `fit`.
        between: whether there is a phase `decoder`.

    Raises:
        ValueError: if no weight wants a gradient in phase 1, or none of the decoder's in phase `decoder`.
    """
    encoder, decoder = (
        any(weight.requires_grad for weight in network.parameters()) for network in (model.encoder, model.decoder)
    )
    if not (decoder or (encoder and not between)):
        what = "the decoder has" if encoder else "encoder and decoder have"
        raise ValueError(f"{what} no weight that requires a gradient: set requires_grad_(True), or use fit_sampler")


def _checked(name: str, images: Tensor, model: LDCVAE | None) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim != 4:
        found = f"{tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{name} must be a tensor (N, C, H, W), got {found}")
    if model is not None and tuple(images.shape[1:]) != model.config.image_shape:
        raise ValueError(f"{name} are {tuple(images.shape[1:])} each, but the model takes {model.config.image_shape}")
    if 0 in images.shape:
        raise ValueError(f"{name} are {tuple(images.shape)}, which holds no pixel")
    if images.shape[3] in (1, 3, 4) and images.shape[1] > 4 and images.shape[2] > 4:
        channels_last = f"{name} are {tuple(images.shape)}: channels come second"
        raise ValueError(f"{channels_last}, as images.permute(0, 3, 1, 2) has them")
    if images.dtype == torch.bool:
        return images.float()
    if images.dtype == torch.uint8:
        if int(images.max()) == 1:
            raise ValueError(f"{name} are uint8 of 0 and 1, which are two kinds of black: give images.float()")
        return images
    if not images.is_floating_point():
        raise ValueError(f"{name} are {images.dtype}: give uint8, or floats in [0, 1]")
    images = images.detach()
    low, high = float(images.min()), float(images.max())
    if not 0.0 <= low <= high <= 1.0:  # a NaN fails too
        raise ValueError(f"{name} run from {low:.4g} to {high:.4g}: floats must lie in [0, 1]; uint8 runs to 255")
    return images.float()


def split_given(images: Tensor, validation: Tensor | None, model: LDCVAE | None, seed: int) -> tuple[Tensor, Tensor]:
    """(training images, validation images): those that are given, or a tenth of the images held out by the seed.

    Raises:
        ValueError: for anything else than images (N, C, H, W) that go together, and that a model given takes.
    """
    if isinstance(images, Tensor) and images.ndim > 0 and len(images) < 2:
        raise ValueError(f"{len(images)} images are too few: give at least 2")
    if isinstance(validation, Tensor) and validation.ndim > 0 and len(validation) == 0:
        raise ValueError("validation holds no image: give some, or None to hold some out")
    images = _checked("images", images, model)
    if validation is not None:
        validation = _checked("validation", validation, model)
        if validation.shape[1:] != images.shape[1:]:
            raise ValueError(f"validation images are {tuple(validation.shape[1:])}, images {tuple(images.shape[1:])}")
        return images, validation
    count = min(len(images) // _HELD_OUT, _MOST_HELD_OUT)
    if count == 0:
        return images, images  # too few to spare any
    order = torch.randperm(len(images), generator=keyed_generator("cpu", seed, "held out")).to(images.device)
    return images[order[count:]], images[order[:count]]
