"""Networks from outside: tried out before they are used; autoencoders given by what they do, encode and decode."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldcvae.encodings import Encodings
from ldcvae.losses import LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE
from ldcvae.networks import evaluating

__all__ = [
    "CallableDecoder",
    "CallableEncoder",
    "Decode",
    "Encode",
    "ToLogits",
    "beside",
    "check_callables",
    "check_finite",
    "check_networks",
    "check_scale",
]

Shape = tuple[int, int, int]
_LEAST_SPREAD = 0.01  # thirty times the standard deviation that stands for a point

Encode = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
"""Images (B, C, H, W) in [0, 1] -> mean and log variance, (B, d) each, or points (B, d)."""
Decode = Callable[[Tensor], Tensor]
"""Latents (B, d), float32 -> images (B, C, H, W) in [0, 1]."""


Model = TypeVar("Model", bound=nn.Module)


def beside(model: Model, *networks: object) -> Model:
    """The model on the device of the first weight of networks, which may be functions, or missing.

    Example:
        >>> beside(nn.Linear(1, 1), None, nn.Linear(1, 1, device="meta")).weight.device
        device(type='meta')
    """
    weight = next((w for one in networks if isinstance(one, nn.Module) for w in one.parameters()), None)
    return model if weight is None else model.to(weight.device)


def _judging(call: Callable[..., Any]) -> AbstractContextManager[None]:
    """Evaluation mode of a module that is called like a function, or whose method is; of what one calls, unknown."""
    network = call if isinstance(call, nn.Module) else getattr(call, "__self__", None)
    return evaluating(network) if isinstance(network, nn.Module) else nullcontext()


def _called(call: Callable[..., Any], batch: Tensor) -> Any:
    with _judging(call):
        return call(batch.clone())  # which may work in place


def _mean_and_log_variance(found: Any) -> tuple[Tensor, Tensor]:
    """Of what `encode` gave; of points the least log variance."""
    parts = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    if len(parts) not in (1, 2) or not all(isinstance(part, Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(
            f"encode gives {kinds}: it must give a tensor (B, d), or two, mean and log variance; of an object take "
            "these from it, as in encode=lambda x: …"
        )
    mean = parts[0]
    return mean, parts[1] if len(parts) == 2 else torch.full_like(mean, LEAST_LOG_VARIANCE)


class CallableEncoder(nn.Module):
    """`encode` as an encoder (B, C, H, W) -> (B, 2d); no module inside, so that nobody else's weights are saved."""

    def __init__(self, encode: Encode):
        super().__init__()
        self.__dict__["encode"] = encode

    def forward(self, images: Tensor) -> Tensor:
        """Means and log variances side by side."""
        return torch.cat(_mean_and_log_variance(_called(self.__dict__["encode"], images)), 1)


class CallableDecoder(nn.Module):
    """`decode` as a decoder (B, d) -> (B, C, H, W) logits, likewise."""

    def __init__(self, decode: Decode):
        super().__init__()
        self.__dict__["decode"] = decode
        self.to_logits = ToLogits()

    def forward(self, latents: Tensor) -> Tensor:
        """The logits."""
        return self.to_logits(_called(self.__dict__["decode"], latents))


def check_finite(encodings: Encodings, images: str) -> None:
    """Nothing for posteriors that are numbers.

    Args:
        encodings: to look at.
        images: what they are of.

    Raises:
        ValueError: naming the first image of which one is not finite.

    Example:
        >>> check_finite(Encodings(torch.tensor([[0.0], [torch.nan]]), torch.zeros(2, 1)), "validation")
        Traceback (most recent call last):
        ValueError: the encoder gives no finite mean and log variance for validation image 1
    """
    finite = (encodings.mean.isfinite() & encodings.log_variance.isfinite()).all(1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise ValueError(f"the encoder gives no finite mean and log variance for {images} image {first}")


def check_scale(encodings: Encodings) -> None:
    """Nothing for latents of a foreign autoencoder whose scale suits the limits that log variances have here.

    Raises:
        ValueError: if noise of the least variance would blur them, or the largest cuts theirs off.

    Example:
        >>> check_scale(Encodings(1e-4 * torch.randn(10, 2), torch.full((10, 2), LEAST_LOG_VARIANCE)))
        Traceback (most recent call last):
        ValueError: latents have a standard deviation of ...: encode must give at least 0.01; multiply ...
    """
    spread = float(encodings.mean.std(0).max()) if len(encodings) > 1 else 1.0
    if spread < _LEAST_SPREAD:
        raise ValueError(
            f"latents have a standard deviation of {spread:.3g} at most: encode must give at least "
            f"{_LEAST_SPREAD:g}; multiply its latents by a constant, and divide by it in decode"
        )
    if bool((encodings.log_variance >= MOST_LOG_VARIANCE).any()):
        raise ValueError(
            f"encode gives log variances of {MOST_LOG_VARIANCE:g} or more, which are cut off there; divide its "
            "latents by a constant, and multiply by it in decode"
        )


def check_callables(encode: Encode, decode: Decode, images: Tensor) -> int:
    """The latent dimension d of an autoencoder that is not trained here; images try it out.

    Args:
        encode: (B, C, H, W) in [0, 1] -> mean and log variance, (B, d) each, or points (B, d); latents of another
            shape are to be flattened.
        decode: (B, d) -> (B, C, H, W) in [0, 1].
        images: (n, C, H, W) floats in [0, 1] to try both on, on the device where the autoencoder is.

    Raises:
        ValueError: if one of them fails on these images, or gives other shapes or values.

    Example:
        >>> decode = lambda z: z.new_zeros(len(z), 1, 2, 2)
        >>> check_callables(lambda x: x.flatten(1)[:, :3], decode, torch.rand(5, 1, 2, 2))
        3
    """
    some = images[:2]
    with torch.no_grad():
        try:
            encoded = _called(encode, some)
        except Exception as error:  # another library's code
            raise ValueError(
                f"encode fails on images {tuple(some.shape)}: {type(error).__name__}: {error}"
            ) from error
        mean, log_variance = _mean_and_log_variance(encoded)
        if mean.ndim != 2 or mean.shape != log_variance.shape or len(mean) != len(some):
            raise ValueError(
                f"encode gives means {tuple(mean.shape)} and log variances {tuple(log_variance.shape)} for "
                f"{len(some)} images: both must be ({len(some)}, d); flatten latents of another shape"
            )
        latents = mean.float()  # whatever encode gives: so are the latents that are drawn
        try:
            decoded = _called(decode, latents)
        except Exception as error:  # likewise
            raise ValueError(
                f"decode fails on latents {tuple(latents.shape)} of float32: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(decoded, Tensor):
        raise ValueError(f"decode gives {type(decoded).__name__}, where a tensor of images (B, C, H, W) is wanted")
    if decoded.shape != some.shape or not bool(((decoded >= 0) & (decoded <= 1)).all()):
        raise ValueError(
            f"decode gives {tuple(decoded.shape)} from {float(decoded.min()):.3g} to {float(decoded.max()):.3g}, "
            f"where images {tuple(some.shape)} in [0, 1] are wanted"
        )
    return mean.shape[1]


class ToLogits(nn.Module):
    """Images in [0, 1] to the logits that the rest of this package expects of a decoder.

    Example:
        >>> import torch
        >>> torch.sigmoid(ToLogits()(torch.tensor([0.25, 0.5])))
        tensor([0.2500, 0.5000])
    """

    def forward(self, images: Tensor) -> Tensor:
        """The logits, finite for exact zeros and ones too."""
        return images.float().clamp(1e-6, 1.0 - 1e-6).logit()


def check_networks(encoder: nn.Module, decoder: nn.Module, shape: Shape, latent_dim: int, logits: bool) -> None:
    """Nothing for networks that fit together; two images of noise try them, in eval mode and without gradient.

    Args:
        encoder: (B, C, H, W) -> (B, 2 · latent_dim).
        decoder: (B, latent_dim) -> (B, C, H, W).
        shape: (C, H, W) of the images.
        latent_dim: d.
        logits: whether the decoder may give any number.

    Raises:
        ValueError: naming the network, what it gives and what is wanted.
    """
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    encoded = _try_out("encoder", encoder, images)
    if tuple(encoded.shape) != (2, 2 * latent_dim):
        raise ValueError(
            f"the encoder gives {tuple(encoded.shape)} for {tuple(images.shape)} images, but latent_dim={latent_dim} "
            f"needs {(2, 2 * latent_dim)}: means and log variances side by side"
        )
    decoded = _try_out("decoder", decoder, torch.zeros(2, latent_dim))
    if decoded.shape != images.shape:
        raise ValueError(
            f"the decoder gives {tuple(decoded.shape)} for (2, {latent_dim}) latents, not {tuple(images.shape)}"
        )
    if not logits and not bool(((decoded >= 0) & (decoded <= 1)).all()):
        raise ValueError(
            "the decoder gives values beyond [0, 1]: end it with a sigmoid, or say logits=True and the model takes it"
        )


def _try_out(name: str, network: nn.Module, batch: Tensor) -> Tensor:
    weight = next(network.parameters(), None)
    try:
        with torch.no_grad(), evaluating(network):
            return network(batch if weight is None else batch.to(weight.device)).cpu()
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"the {name} fails on a batch of shape {tuple(batch.shape)}: {error}") from error
