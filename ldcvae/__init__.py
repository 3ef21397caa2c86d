"""LDC-VAE: latent distribution consistency VAEs in plain PyTorch.

Example:
    >>> import torch
    >>> from ldcvae import LDCVAE, LDCVAEConfig
    >>> model = LDCVAE(LDCVAEConfig(image_shape=(1, 8, 8), latent_dim=4))
    >>> images = model.sample(4, generator=torch.Generator().manual_seed(0))
    >>> images.shape
    torch.Size([4, 1, 8, 8])
"""

from ldcvae.encodings import Encodings, Posterior, Whitening
from ldcvae.model import LDCVAE, LDCVAEConfig
from ldcvae.directions.stein import stein_direction, svgd
from ldcvae.directions.two_sample import drift, score_difference

__all__ = [
    "LDCVAE",
    "Encodings",
    "LDCVAEConfig",
    "Posterior",
    "Whitening",
    "drift",
    "score_difference",
    "stein_direction",
    "svgd",
]
