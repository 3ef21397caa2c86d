"""LDC-VAE: encoder, decoder and the sampler net whose draws replace the prior's."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional

from ldcvae.encodings import Encodings, Posterior, Whitening
from ldcvae.networks import SamplerNet, build_decoder, build_encoder

__all__ = ["LDCVAE", "LDCVAEConfig", "LogDensity", "reconstruction_loss"]


@dataclass(frozen=True)
class LDCVAEConfig:
    """Everything that fixes the shapes and the meaning of the weights; saved as `config.json`.

    Attributes:
        image_shape: (C, H, W).
        latent_dim: d.
        network: mlp, conv, resnet or auto (by image size).
        width: hidden units (mlp) or channels of the first level.
        depth: hidden layers (mlp, conv) or residual blocks a level (resnet).
        likelihood: gaussian (squared error) or bernoulli (cross-entropy), summed over pixels.
        inverse_temperature: lambda of the Gibbs posterior `exp(-lambda l(x, z)) exp(-|z|²/2)`.
        sampler_width: hidden units of the sampler net.
        sampler_depth: its residual layers.
        base_components: components of the sampler's base mixture; 0 for N(0, I).
    """

    image_shape: tuple[int, int, int]
    latent_dim: int = 16
    network: str = "auto"
    width: int = 32
    depth: int = 1
    likelihood: str = "gaussian"
    inverse_temperature: float = 40.0
    sampler_width: int = 256
    sampler_depth: int = 3
    base_components: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(self.image_shape))  # JSON has lists only
        if self.likelihood not in ("gaussian", "bernoulli"):
            raise ValueError(f"unknown likelihood {self.likelihood!r}: choose gaussian or bernoulli")


class LogDensity(NamedTuple):
    """Terms of the evidence bound of each image, in nats up to the Gibbs normaliser.

    Attributes:
        reconstruction: (B,) l(x, z), summed over pixels.
        kl: (B,) KL of the encoder's posterior from N(0, I).
        elbo: (B,) `-lambda · reconstruction - kl`.
    """

    reconstruction: Tensor
    kl: Tensor
    elbo: Tensor


def reconstruction_loss(logits: Tensor, images: Tensor, likelihood: str) -> Tensor:
    """l(x, z) of each image, summed over its pixels.

    Args:
        logits: (B, C, H, W) or (B, M, C, H, W) decoder output before the sigmoid.
        images: broadcastable to it, in [0, 1].
        likelihood: gaussian or bernoulli.

    Returns:
        (B,) or (B, M).

    Example:
        >>> reconstruction_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "gaussian")  # 4 · 0.5²
        tensor([1.])
    """
    images = images.expand_as(logits)
    if likelihood == "gaussian":
        pixelwise = functional.mse_loss(torch.sigmoid(logits), images, reduction="none")
    else:
        pixelwise = functional.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return pixelwise.flatten(-3).sum(-1)


def gaussian_kl(posterior: Posterior) -> Tensor:
    """(B,) KL(q(z | x) || N(0, I)) in nats.

    Example:
        >>> gaussian_kl(Posterior(torch.zeros(1, 3), torch.zeros(1, 3)))
        tensor([0.])
    """
    mean, log_variance = posterior
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)


def split_posterior(output: Tensor) -> Posterior:
    """Encoder output (B, 2d) -> posterior, in float32, the log variance kept where exp() is safe."""
    mean, log_variance = output.float().chunk(2, dim=1)
    return Posterior(mean, log_variance.clamp(-16.0, 8.0))


class LDCVAE(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="ldcvae",
    tags=["vae", "svgd"],
):
    """Latent distribution consistency VAE (arXiv 2109.10640).

    `decode(sample_latents(n))` draws images in one forward pass of two networks: the sampler net has been
    trained by SVGD to follow the aggregate of the encoder's posteriors, which is what the decoder knows.

    Args:
        config: an `LDCVAEConfig`.

    Example:
        >>> model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=4))
        >>> model.sample(5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 1, 8, 8])
    """

    latent_mean: Tensor
    whitening_matrix: Tensor
    whitening_inverse: Tensor
    base_weights: Tensor
    base_means: Tensor
    base_scales: Tensor

    def __init__(self, config: LDCVAEConfig):
        super().__init__()
        self.config = config
        shape, d = config.image_shape, config.latent_dim
        self.encoder = build_encoder(config.network, shape, d, config.width, config.depth)
        self.decoder = build_decoder(config.network, shape, d, config.width, config.depth)
        self.sampler = SamplerNet(d, config.sampler_width, config.sampler_depth)
        self.register_buffer("latent_mean", torch.zeros(d))
        self.register_buffer("whitening_matrix", torch.eye(d))
        self.register_buffer("whitening_inverse", torch.eye(d))
        k = config.base_components
        self.register_buffer("base_weights", torch.full((k,), 1.0 / max(k, 1)))
        self.register_buffer("base_means", torch.zeros(k, d))
        self.register_buffer("base_scales", torch.eye(d).repeat(k, 1, 1))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.latent_mean.device

    @property
    def whitening(self) -> Whitening:
        """The whitening of the aggregate posterior, identity before phase 2."""
        return Whitening(self.latent_mean, self.whitening_matrix, self.whitening_inverse)

    def set_whitening(self, whitening: Whitening) -> None:
        """Fix the coordinates in which the sampler works."""
        self.latent_mean.copy_(whitening.mean)
        self.whitening_matrix.copy_(whitening.matrix)
        self.whitening_inverse.copy_(whitening.inverse)

    def set_base(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Fix the base mixture: (k,) weights, (k, d) means, (k, d, d) covariances, in whitened coordinates."""
        self.base_weights.copy_(weights)
        self.base_means.copy_(means)
        self.base_scales.copy_(torch.linalg.cholesky(covariances.double()))

    def encode(self, images: Tensor) -> Posterior:
        """Posteriors of images (B, C, H, W) in [0, 1]: mean and log variance, (B, d) each."""
        return split_posterior(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] of latents (B, d)."""
        return torch.sigmoid(self.decoder(latents).float())

    def forward(self, images: Tensor) -> Tensor:
        """The same as `reconstruct`."""
        return self.reconstruct(images)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Decoded posterior means of images (B, C, H, W)."""
        return self.decode(self.encode(images).mean)

    def log_density(self, images: Tensor, generator: torch.Generator | None = None) -> LogDensity:
        """Terms of the evidence bound, with one posterior draw per image.

        Args:
            images: (B, C, H, W) in [0, 1].
            generator: on any device; None for the posterior mean instead of a draw.
        """
        posterior = self.encode(images)
        latents = posterior.mean
        if generator is not None:
            latents = posterior.draw(_normal(latents.shape, generator, latents.device))
        reconstruction = reconstruction_loss(self.decoder(latents).float(), images, self.config.likelihood)
        kl = gaussian_kl(posterior)
        return LogDensity(reconstruction, kl, -self.config.inverse_temperature * reconstruction - kl)

    def encodings(self, images: Tensor, batch_size: int = 1024) -> Encodings:
        """Posteriors of many images (N, C, H, W), uint8 or float in [0, 1], in batches, without gradient."""
        with torch.no_grad():
            parts = [self.encode(as_float(part).to(self.device)) for part in images.split(batch_size)]
        return Encodings(torch.cat([p.mean for p in parts]), torch.cat([p.log_variance for p in parts]))

    def draw_base(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, d) draws of the sampler's base in whitened coordinates: N(0, I) or the fitted mixture."""
        noise = _normal((n, self.config.latent_dim), generator, self.device)
        if self.config.base_components == 0:
            return noise
        where = generator.device if generator is not None else self.device
        component = torch.multinomial(self.base_weights.to(where), n, replacement=True, generator=generator)
        component = component.to(self.device)
        if self.config.base_components > self.config.latent_dim:
            return self.base_means[component] + (self.base_scales[component] @ noise[:, :, None])[:, :, 0]
        # All k images of each draw, of which one is kept: for few components less than a gathered (n, d, d).
        every = self.base_means[:, None] + noise @ self.base_scales.mT
        return every[component, torch.arange(n, device=self.device)]

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, d) latents: one forward pass of the sampler net."""
        return self.whitening.unwhiten(self.sampler(self.draw_base(n, generator)))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Generate images.

        Args:
            n: how many.
            generator: draws the noise, on its own device: a CPU generator gives the same noise for a model on
                any device.

        Returns:
            (n, C, H, W) in [0, 1].
        """
        return self.decode(self.sample_latents(n, generator))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "LDCVAE":
        """Load a model that `save_pretrained` wrote: `config.json` and `model.safetensors`.

        Args:
            pretrained_model_name_or_path: a folder; a hub id such as "hub:user/model" only on explicit request by
                that prefix, so that a mistyped folder never turns into a download.
            kwargs: see `huggingface_hub.ModelHubMixin.from_pretrained`.

        Raises:
            FileNotFoundError: if the folder holds no model.
        """
        source = os.fspath(pretrained_model_name_or_path)
        if not source.startswith("hub:") and not os.path.isfile(os.path.join(source, "model.safetensors")):
            raise FileNotFoundError(
                f"{source} holds no model.safetensors: give the folder that save_pretrained wrote "
                "(a run's model/ folder), or hub:USER/MODEL to download"
            )
        with contextlib.redirect_stdout(None):  # huggingface_hub prints that it loads from a local directory
            model = super().from_pretrained(source.removeprefix("hub:"), **kwargs)
        return model.eval()


def as_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]; float images as they are."""
    return images.float().div_(255.0) if images.dtype == torch.uint8 else images


def _normal(shape: Any, generator: torch.Generator | None, device: torch.device) -> Tensor:
    where = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, device=where).to(device)
