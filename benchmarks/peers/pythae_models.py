"""pythae's models on this project's networks, with loss weights that mean the same as this project's.

Runs in the peers' environment. README.md has the mapping, check_losses.py proves it.
"""

import math
from typing import Any

import torch
from pythae.models import RAE_L2, VAE, VAMP, WAE_MMD, RAE_L2_Config, VAEConfig, VAMPConfig, WAE_MMD_Config
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn

from ldcvae.losses import split_posterior
from ldcvae.networks import build_decoder, build_encoder

__all__ = ["Decoder", "Encoder", "WeightedVAE", "WeightedVAMP", "build"]


class Encoder(BaseEncoder):
    """This project's encoder; models without a posterior take the mean."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> ModelOutput:
        """Mean and log variance, the latter kept where exp() is safe, as in this project."""
        mean, log_variance = split_posterior(self.network(x))
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """This project's decoder, whose logits pass through a sigmoid."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> ModelOutput:
        """Images in [0, 1]."""
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


class _Weighted:
    """pythae's `SE/2 + KL` of images times √(2 lambda), which is `lambda SE + KL`; the networks see plain images."""

    scale = 1.0

    def loss_function(self, recon_x: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        return super().loss_function(self.scale * recon_x, self.scale * x, *rest)  # type: ignore[misc]


class WeightedVAE(_Weighted, VAE):
    """pythae's VAE with a weight on the reconstruction loss."""


class WeightedVAMP(_Weighted, VAMP):
    """pythae's VAMP with a weight on the reconstruction loss."""


def build(name: str, spec: dict[str, Any], seed: int) -> nn.Module:
    """One of pythae's models with this project's networks and the loss weights of the spec."""
    torch.manual_seed(seed)
    sizes = (spec["network"], tuple(spec["shape"]), spec["latent_dim"], spec["width"], spec["depth"])
    networks = Encoder(build_encoder(*sizes)), Decoder(build_decoder(*sizes))
    common = {"input_dim": tuple(spec["shape"]), "latent_dim": spec["latent_dim"]}
    weight, settings = spec["inverse_temperature"], spec["settings"]
    if name == "wae_mmd":
        scales = {"reconstruction_loss_scale": weight, "reg_weight": weight * settings[name]}
        return WAE_MMD(WAE_MMD_Config(**common, **scales), *networks)
    if name == "rae_l2":
        return RAE_L2(RAE_L2_Config(**common, embedding_weight=settings[name] / weight), *networks)
    model: _Weighted
    if name == "vae":
        model = WeightedVAE(VAEConfig(**common, reconstruction_loss="mse"), *networks)
    else:
        config = VAMPConfig(**common, reconstruction_loss="mse", number_components=settings[name])
        model = WeightedVAMP(config, *networks)
    model.scale = math.sqrt(2.0 * weight)
    return model
