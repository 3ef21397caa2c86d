"""A patch discriminator and its hinge losses: what makes a decoder's images look like the data's, and not grey.

Squared error is least for the mean of all images that a latent may stand for, which is blurred. A discriminator that
sees patches tells such a mean from an image, and its gradient moves the decoder towards images (Isola et al. 2017,
arXiv 1611.07004; Esser et al. 2021, arXiv 2012.09841).
"""

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["LEAST_SIDE", "adaptive_factor", "discriminator_loss", "generator_loss", "patch_discriminator"]

LEAST_SIDE = 4
"""Pixels that an image must have each way."""


def patch_discriminator(channels: int, width: int = 32, side: int | None = None) -> nn.Sequential:
    """Scores of overlapping patches of an image: positive for real, negative for decoded ones.

    Four convolutions with spectral norm (Miyato et al. 2018, arXiv 1802.05957), 4x4/2, 4x4/2, 3x3 and 3x3, of
    `width`, `2 width`, `4 width` channels and one, with leaky ReLUs of slope 0.2 between them. A score sees 26 pixels
    each way, whatever the image's size: enough for texture and edges; the whole is judged by squared error.

    Args:
        channels: C of the images.
        width: channels of the first convolution.
        side: pixels of the images' shorter side, if that is to be checked.

    Returns:
        A module (B, C, H, W) in [0, 1] -> (B, 1, H // 4, W // 4) scores.

    Raises:
        ValueError: for images too small to be halved twice.

    Example:
        >>> import torch
        >>> patch_discriminator(3, width=8)(torch.rand(2, 3, 28, 28)).shape
        torch.Size([2, 1, 7, 7])
    """
    if side is not None and side < LEAST_SIDE:
        raise ValueError(f"images of {side} pixels are too small for the discriminator, which needs {LEAST_SIDE}")

    def layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
        return spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=1))

    return nn.Sequential(
        layer(channels, width, 4, 2),
        nn.LeakyReLU(0.2, inplace=True),
        layer(width, 2 * width, 4, 2),
        nn.LeakyReLU(0.2, inplace=True),
        layer(2 * width, 4 * width, 3, 1),
        nn.LeakyReLU(0.2, inplace=True),
        layer(4 * width, 1, 3, 1),
    )


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss `mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))` (Lim & Ye 2017, arXiv 1705.02894).

    Args:
        real: scores of any shape.
        fake: scores of decoded images, of any shape.

    Returns:
        0-d.

    Example:
        >>> import torch
        >>> discriminator_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, -0.5]))  # (0 + .5) / 2 + (0 + .5) / 2
        tensor(0.5000)
    """
    return functional.relu(1.0 - real).mean() + functional.relu(1.0 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """What a decoder minimises against it, `-mean D(fake)`; 0-d, from scores of any shape.

    Example:
        >>> import torch
        >>> generator_loss(torch.tensor([1.0, -3.0]))
        tensor(1.)
    """
    return -fake.mean()


def adaptive_factor(reconstruction: Tensor, adversarial: Tensor, cap: float) -> Tensor:
    """Ratio of two gradients' norms: a weight of 1 makes both losses pull equally (arXiv 2012.09841, equation 7).

    Args:
        reconstruction: gradient of the reconstruction loss at the decoder's last weights.
        adversarial: gradient of the generator's loss at the same weights.
        cap: the most that the ratio may be: where the discriminator says nothing it would be infinite.

    Returns:
        0-d.

    Example:
        >>> import torch
        >>> adaptive_factor(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.5]), cap=10.0)
        tensor(1.9999)
        >>> adaptive_factor(torch.ones(2), torch.zeros(2), cap=10.0)
        tensor(10.)
    """
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(max=cap)
