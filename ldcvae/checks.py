"""What `fit` and `fit_sampler` are given, checked before the first step."""

import torch
from torch import Tensor

from ldcvae.discriminator import LEAST_SIDE
from ldcvae.model import LDCVAE
from ldcvae.training.settings import DecoderSettings, SamplerSettings
from ldcvae.training.world import keyed_generator

__all__ = ["check_phases", "split_given"]

_HELD_OUT = 10  # one image in so many validates, where no validation images are given
_MOST_HELD_OUT = 5000


def check_phases(train: Tensor, decoder: DecoderSettings | None, sampler: SamplerSettings) -> None:
    """Nothing for images and settings that no phase will refuse.

    Raises:
        ValueError: naming the setting, what it needs and what there is.
    """
    if sampler.base_shape[0] > len(train):
        raise ValueError(
            f"the sampler's base of {sampler.base_components} components needs as many training images, got "
            f"{len(train):,}; give more, or sampler=SamplerSettings(base_components=1)"
        )
    if decoder is None:
        return
    if decoder.epochs == 0 and decoder != DecoderSettings():
        raise ValueError("decoder has settings, but epochs=0, which is no such phase; e.g. DecoderSettings(epochs=8)")
    if decoder.epochs and decoder.adversarial and min(train.shape[2:]) < LEAST_SIDE:
        raise ValueError(
            f"images of {min(train.shape[2:])} pixels are too small for phase decoder: {LEAST_SIDE} is least"
        )


def _checked(name: str, images: Tensor, model: LDCVAE | None) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim != 4:
        found = f"{tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{name} must be a tensor (N, C, H, W), got {found}")
    if model is not None and tuple(images.shape[1:]) != model.config.image_shape:
        raise ValueError(f"{name} are {tuple(images.shape[1:])} each, but the model takes {model.config.image_shape}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"{name} are {images.dtype}: give uint8, or floats in [0, 1]")
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
    images = _checked("images", images, model)
    if validation is not None:
        if len(validation) == 0:
            raise ValueError("validation holds no image: give some, or None to hold some out")
        validation = _checked("validation", validation, model)
        if validation.shape[1:] != images.shape[1:]:
            raise ValueError(f"validation images are {tuple(validation.shape[1:])}, images {tuple(images.shape[1:])}")
        return images, validation
    count = min(len(images) // _HELD_OUT, _MOST_HELD_OUT)
    if count == 0:
        return images, images  # too few to spare any
    order = torch.randperm(len(images), generator=keyed_generator("cpu", seed, "held out")).to(images.device)
    return images[order[count:]], images[order[:count]]
