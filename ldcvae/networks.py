"""Encoders, decoders and the sampler net, built by name and image shape.

`mlp` for tiny images (8x8), `conv` for 28 and 32 pixels, `resnet` (residual, group norm) for 32 and 64. An
encoder maps (B, C, H, W) in [0, 1] to (B, 2d), mean and log variance side by side; a decoder maps (B, d) to
(B, C, H, W) logits, of which the model takes the sigmoid.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ldcvae.config import UPSAMPLES
from ldcvae.variants import NETWORKS

__all__ = [
    "SamplerNet",
    "build_decoder",
    "build_encoder",
    "choose_network",
    "evaluating",
    "residual_mlp",
]

Shape = tuple[int, int, int]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the duration of a block, of networks with batch norm or dropout.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    modes = {module: module.training for module in network.modules()}  # a part may be frozen by its own
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _mlp(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return layers[:-1]


def mlp_encoder(shape: Shape, latent_dim: int, width: int, depth: int) -> nn.Module:
    """`depth` hidden layers of `width`."""
    channels, height, rows = shape
    return nn.Sequential(nn.Flatten(), *_mlp([channels * height * rows, *[width] * depth, 2 * latent_dim]))


def mlp_decoder(shape: Shape, latent_dim: int, width: int, depth: int) -> nn.Module:
    """The encoder's mirror image."""
    channels, height, rows = shape
    return nn.Sequential(*_mlp([latent_dim, *[width] * depth, channels * height * rows]), nn.Unflatten(1, shape))


def conv_encoder(shape: Shape, latent_dim: int, width: int, depth: int) -> nn.Module:
    """Two halvings by convolution, to `2 width` channels, then `depth` hidden layers of `8 width`."""
    channels, height, rows = shape
    features = 2 * width * (height // 4) * (rows // 4)
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        *_mlp([features, *[8 * width] * depth, 2 * latent_dim]),
    )


def doubled(inputs: int, outputs: int, upsample: str) -> list[nn.Module]:
    """Layers that double height and width: (B, inputs, H, W) -> (B, outputs, 2H, 2W)."""
    if upsample == "transposed":
        return [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
    # Every pixel is made of the same number of inputs: no grid is laid over the image.
    return [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inputs, outputs, 3, padding=1)]


def conv_decoder(shape: Shape, latent_dim: int, width: int, depth: int, upsample: str = "transposed") -> nn.Module:
    """The encoder's mirror image; `upsample` is how it doubles."""
    channels, height, rows = shape
    seed = (2 * width, height // 4, rows // 4)
    return nn.Sequential(
        *_mlp([latent_dim, *[8 * width] * depth, seed[0] * seed[1] * seed[2]]),
        nn.SiLU(),
        nn.Unflatten(1, seed),
        *doubled(2 * width, width, upsample),
        nn.SiLU(),
        *doubled(width, channels, upsample),
    )


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), zero at the start so that deep stacks begin as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        groups = channel_groups(channels)
        self.body = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.body[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def channel_groups(channels: int) -> int:
    """Groups of a group norm: the most of 8 that divide the channels."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)


def activated(channels: int) -> list[nn.Module]:
    """Group norm and SiLU: what stands between the last residual block and the layer that reads it."""
    return [nn.GroupNorm(channel_groups(channels), channels), nn.SiLU()]


def halvings(shape: Shape) -> int:
    """How often to halve until the longer side is at most 8 pixels."""
    side, levels = max(shape[1:]), 0
    while side > 8:
        side, levels = side // 2, levels + 1
    return levels


def _resnet_widths(shape: Shape, width: int) -> list[int]:
    return [min(width * 2**level, 8 * width) for level in range(halvings(shape) + 1)]


def resnet_encoder(shape: Shape, latent_dim: int, width: int, depth: int) -> nn.Module:
    """Halved to 8 pixels, `depth` residual blocks at each size; channels double from `width` to eight times it."""
    widths = _resnet_widths(shape, width)
    layers: list[nn.Module] = [nn.Conv2d(shape[0], widths[0], 3, padding=1)]
    for narrow, wide in itertools.pairwise(widths):
        layers += [ResidualBlock(narrow) for _ in range(depth)]
        layers.append(nn.Conv2d(narrow, wide, 4, stride=2, padding=1))
    layers += [ResidualBlock(widths[-1]) for _ in range(depth)]
    scale = 2 ** (len(widths) - 1)
    features = widths[-1] * (shape[1] // scale) * (shape[2] // scale)
    head = [*activated(widths[-1]), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(features, 2 * latent_dim))


def resnet_decoder(shape: Shape, latent_dim: int, width: int, depth: int, upsample: str = "transposed") -> nn.Module:
    """The encoder's mirror image; `upsample` is how it doubles."""
    widths = _resnet_widths(shape, width)[::-1]
    scale = 2 ** (len(widths) - 1)
    seed = (widths[0], shape[1] // scale, shape[2] // scale)
    layers: list[nn.Module] = [nn.Linear(latent_dim, seed[0] * seed[1] * seed[2]), nn.Unflatten(1, seed)]
    for wide, narrow in itertools.pairwise(widths):
        layers += [ResidualBlock(wide) for _ in range(depth)]
        layers += doubled(wide, narrow, upsample)
    layers += [ResidualBlock(widths[-1]) for _ in range(depth)]
    return nn.Sequential(*layers, *activated(widths[-1]), nn.Conv2d(widths[-1], shape[0], 3, padding=1))


def mlp_multiple(shape: Shape) -> int:
    """Any image will do."""
    return 1


def conv_multiple(shape: Shape) -> int:
    """Both levels halve the image."""
    return 4


def resnet_multiple(shape: Shape) -> int:
    """Every level halves the image."""
    return 2 ** halvings(shape)


def choose_network(name: str, shape: Shape) -> str:
    """The network that `name` means for images of `shape` (C, H, W); `auto` picks by size.

    Raises:
        ValueError: for an unknown name, or sides the network cannot halve evenly.

    Example:
        >>> choose_network("auto", (1, 28, 28)), choose_network("auto", (3, 64, 64))
        ('conv', 'resnet')
    """
    longer = max(shape[1:])
    if name == "auto":
        name = "mlp" if longer < 16 else "conv" if longer <= 32 else "resnet"
    multiple = NETWORKS.find(name).multiple(shape)
    if any(side % multiple for side in shape[1:]):
        raise ValueError(
            f"network {name!r} needs image sides divisible by {multiple}, got {shape[1]}x{shape[2]}: "
            "resize the images (data.image_size in a pipeline's configuration), or use network mlp, in Python "
            "LDCVAE(LDCVAEConfig(image_shape, network='mlp'))"
        )
    return name


def build_encoder(name: str, shape: Shape, latent_dim: int, width: int, depth: int) -> nn.Module:
    """Encoder (B, C, H, W) -> (B, 2 · latent_dim).

    Example:
        >>> import torch
        >>> build_encoder("conv", (1, 28, 28), 16, width=8, depth=1)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 32])
    """
    return NETWORKS[choose_network(name, shape)].encoder(shape, latent_dim, width, depth)


def build_decoder(
    name: str, shape: Shape, latent_dim: int, width: int, depth: int, upsample: str = "transposed"
) -> nn.Module:
    """Decoder (B, latent_dim) -> (B, C, H, W) logits.

    Args:
        name: of the network, or auto.
        shape: (C, H, W) of the images.
        latent_dim: d.
        width: hidden units, or channels of the first level.
        depth: hidden layers, or residual blocks a level.
        upsample: transposed (convolutions 4x4, stride 2) or nearest (nearest neighbour, then a convolution 3x3).

    Raises:
        ValueError: for an unknown name or way of upsampling, or one that the network does not know.

    Example:
        >>> import torch
        >>> build_decoder("resnet", (3, 64, 64), 16, width=8, depth=1)(torch.zeros(2, 16)).shape
        torch.Size([2, 3, 64, 64])
    """
    network = NETWORKS[choose_network(name, shape)]
    if upsample not in UPSAMPLES:
        raise ValueError(f"unknown upsample {upsample!r}: choose {' or '.join(UPSAMPLES)}")
    if upsample == UPSAMPLES[0]:
        return network.decoder(shape, latent_dim, width, depth)
    if not network.upsamples:
        raise ValueError(
            f"the decoder of network {network.name!r} does not upsample: leave upsample at {UPSAMPLES[0]}"
        )
    return network.decoder(shape, latent_dim, width, depth, upsample)


class _ResidualLayer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(nn.functional.silu(self.up(self.norm(h))))


def residual_mlp(inputs: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    """Residual MLP (n, inputs) -> (n, outputs) with `depth` layers of `width`, zero at the start.

    Example:
        >>> import torch
        >>> bool((residual_mlp(3, 2, width=16, depth=1)(torch.randn(5, 3)) == 0).all())
        True
    """
    layers = [_ResidualLayer(width) for _ in range(depth)]
    network = nn.Sequential(nn.Linear(inputs, width), *layers, nn.SiLU(), nn.Linear(width, outputs))
    nn.init.zeros_(network[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[-1].bias)  # type: ignore[arg-type]
    return network


class SamplerNet(nn.Module):
    """Residual MLP that turns base draws into latents: `S(u) = u + f(u)` with f zero at the start.

    So an untrained sampler draws its base, N(0, I) (the Gaussian fit, since latents are whitened) or a mixture.

    Args:
        dim: d, latent dimensions.
        width: hidden units.
        depth: residual layers.

    Example:
        >>> import torch
        >>> u = torch.randn(3, 16)
        >>> bool((SamplerNet(16, width=32, depth=2)(u) == u).all())
        True
    """

    def __init__(self, dim: int, width: int = 256, depth: int = 3):
        super().__init__()
        self.inner = residual_mlp(dim, dim, width, depth)

    def forward(self, base: Tensor) -> Tensor:
        """(n, d) base draws -> (n, d) whitened latents."""
        return base + self.inner(base)
