"""Encoders and decoders whose latents keep the image's plane: (c, h, w) numbers, handed on as d = c·h·w in a row.

Every level halves the image until its longer side is at most 8; at that size there are residual blocks, and latents
are made and read by convolutions: no layer sees the whole image at once, so that d can be a thousand at the price of
a small convolution. What a latent means then depends on where it is, as in the autoencoders of latent diffusion
(Rombach et al. 2022, 2112.10752, section 3.1).
"""

import itertools

from torch import nn

from ldcvae.networks import ResidualBlock, activated, doubled, halvings, resnet_multiple

__all__ = ["spatial_decoder", "spatial_encoder", "spatial_grid", "spatial_multiple"]

Shape = tuple[int, int, int]


spatial_multiple = resnet_multiple  # the levels are the same


def spatial_grid(shape: Shape) -> tuple[int, int]:
    """(h, w) of the latents of images (C, H, W).

    Example:
        >>> spatial_grid((3, 32, 32)), spatial_grid((1, 28, 28)), spatial_grid((3, 64, 48))
        ((8, 8), (7, 7), (8, 6))
    """
    multiple = spatial_multiple(shape)
    return shape[1] // multiple, shape[2] // multiple


def _channels(shape: Shape, latent_dim: int) -> int:
    height, width = spatial_grid(shape)
    if latent_dim % (height * width):
        nearest = max(1, round(latent_dim / (height * width))) * height * width
        raise ValueError(
            f"network 'spatial' gives images of {shape[1]}x{shape[2]} latents of {height}x{width} places: latent_dim "
            f"must be a multiple of {height * width}, got {latent_dim}; try {nearest}"
        )
    return latent_dim // (height * width)


def _widths(shape: Shape, width: int) -> list[int]:
    """Channels after each halving, the finest first; one width where there is nothing to halve."""
    return [min(width * 2**level, 8 * width) for level in range(max(1, halvings(shape)))]


def spatial_encoder(shape: Shape, latent_dim: int, width: int, depth: int) -> nn.Module:
    """(B, C, H, W) -> (B, 2·c·h·w), means first, each in the order (c, h, w).

    Raises:
        ValueError: if d is no multiple of h·w.
    """
    channels, widths = _channels(shape, latent_dim), _widths(shape, width)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise([shape[0], *widths]):
        halve = halvings(shape) > 0
        layers.append(nn.Conv2d(inputs, outputs, *((4, 2, 1) if halve else (3, 1, 1))))
        layers.append(nn.SiLU())
    layers += [ResidualBlock(widths[-1]) for _ in range(depth)]
    layers += activated(widths[-1])
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 2 * channels, 3, padding=1), nn.Flatten())


def spatial_decoder(shape: Shape, latent_dim: int, width: int, depth: int, upsample: str = "transposed") -> nn.Module:
    """(B, c·h·w) -> (B, C, H, W) logits.

    Raises:
        ValueError: if d is no multiple of h·w.
    """
    channels, widths = _channels(shape, latent_dim), _widths(shape, width)[::-1]
    layers: list[nn.Module] = [
        nn.Unflatten(1, (channels, *spatial_grid(shape))),
        nn.Conv2d(channels, widths[0], 3, padding=1),
        *(ResidualBlock(widths[0]) for _ in range(depth)),
        *activated(widths[0]),
    ]
    for inputs, outputs in itertools.pairwise([*widths, shape[0]]):
        if halvings(shape):
            layers += doubled(inputs, outputs, upsample)
        else:
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
        layers.append(nn.SiLU())
    return nn.Sequential(*layers[:-1])
