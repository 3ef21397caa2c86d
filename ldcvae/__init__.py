"""LDC-VAE: latent distribution consistency VAEs in plain PyTorch.

Example:
    >>> import torch
    >>> from ldcvae import LDCVAE, LDCVAEConfig
    >>> model = LDCVAE(LDCVAEConfig(image_shape=(1, 8, 8), latent_dim=4))
    >>> images = model.sample(4, generator=torch.Generator().manual_seed(0))
    >>> images.shape
    torch.Size([4, 1, 8, 8])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldcvae.api import fit, fit_sampler
    from ldcvae.directions.stein import stein_direction, svgd
    from ldcvae.directions.two_sample import drift, score_difference
    from ldcvae.encodings import Encodings, Posterior, Whitening
    from ldcvae.model import LDCVAE, LDCVAEConfig
    from ldcvae.training.settings import AutoencoderSettings, DecoderSettings, SamplerSettings

__all__ = [
    "LDCVAE",
    "AutoencoderSettings",
    "DecoderSettings",
    "Encodings",
    "LDCVAEConfig",
    "Posterior",
    "SamplerSettings",
    "Whitening",
    "__version__",
    "drift",
    "fit",
    "fit_sampler",
    "score_difference",
    "stein_direction",
    "svgd",
]

__version__ = "0.2.0"

# Imported when they are first asked for: a command line that checks a configuration needs no torch.
_PLACES = {
    "directions.stein": ("stein_direction", "svgd"),
    "directions.two_sample": ("drift", "score_difference"),
    "encodings": ("Encodings", "Posterior", "Whitening"),
    "api": ("fit", "fit_sampler"),
    "model": ("LDCVAE", "LDCVAEConfig"),
    "training.settings": ("AutoencoderSettings", "DecoderSettings", "SamplerSettings"),
}
_PLACE = {name: f"ldcvae.{module}" for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACE:
        raise AttributeError(f"module 'ldcvae' has no attribute {name!r}")
    found = getattr(importlib.import_module(_PLACE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
