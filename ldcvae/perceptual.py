"""Distance of images in the features of a given network, for the decoder's loss (LPIPS-style, arXiv 1801.03924)."""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["check_features", "feature_distance", "load_features"]

Features = Callable[[Tensor], Tensor | Sequence[Tensor]]
"""Images (B, C, H, W) in [0, 1] -> features (B, K, …), of one layer or a list of several."""


def load_features(source: str | Path | bytes, device: torch.device | str = "cpu") -> nn.Module:
    """A frozen network from a TorchScript file: it brings its own code, and nothing is unpickled.

    Args:
        source: path, or the content, of what `torch.jit.save` wrote: images (B, C, H, W) in [0, 1] -> features
            (B, K, …), or a list of them.
        device: where to put it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no TorchScript file.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/features.pt"
        >>> torch.jit.script(nn.Conv2d(1, 4, 3)).save(path)
        >>> load_features(path)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 4, 6, 6])
    """
    if isinstance(source, bytes):
        name, content = "it", source
    elif Path(source).is_file():
        name, content = str(source), Path(source).read_bytes()
    else:
        raise FileNotFoundError(f"{source} does not exist")
    try:
        with warnings.catch_warnings():
            # torch.export, which Torch would rather see, unpickles; TorchScript can only compute.
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(io.BytesIO(content), map_location=device)
    except RuntimeError as error:
        raise ValueError(f"{name} is no TorchScript file: {str(error).splitlines()[0]}") from None
    for weight in network.parameters():
        weight.requires_grad_(False)
    return network.eval()


def check_features(network: Features, image_shape: tuple[int, int, int], device: torch.device | str) -> None:
    """Nothing for a network that gives features of images of this shape.

    Raises:
        ValueError: with the last line of its error.

    Example:
        >>> check_features(nn.Conv2d(3, 4, 3), (1, 8, 8), "cpu")
        Traceback (most recent call last):
        ValueError: no features of images (1, 8, 8): Given groups=1, weight of size [4, 3, 3, 3], expected input...
    """
    nothing = torch.zeros(2, *image_shape, device=device)
    try:
        feature_distance(network, nothing, nothing)
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ValueError(f"no features of images {image_shape}: {reason}") from None


def feature_distance(network: Features, images: Tensor, targets: Tensor) -> Tensor:
    """(B,) squared distances of features, each scaled to unit length over its K channels, mean over positions.

    Several layers' distances are added. Without the weights per channel that LPIPS has learnt: a network that is to
    have them can scale its features itself.

    Args:
        network: see `Features`.
        images: (B, C, H, W) in [0, 1].
        targets: as many; no gradient passes through their features.

    Example:
        >>> images = torch.rand(2, 1, 4, 4)
        >>> feature_distance(lambda x: x.flatten(1), images, images)
        tensor([0., 0.])
    """
    with torch.no_grad():
        aims = _layers(network(targets))
    total = images.new_zeros(len(images))
    for found, aim in zip(_layers(network(images)), aims, strict=True):
        difference = functional.normalize(found.float(), dim=1) - functional.normalize(aim.float(), dim=1)
        total = total + difference.square().sum(1, keepdim=True).flatten(1).mean(1)
    return total


def _layers(features: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)
