"""LDC-VAE: encoder, decoder and the sampler net whose draws replace the prior's."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from ldcvae.batches import rows_at_a_time
from ldcvae.config import LDCVAEConfig
from ldcvae.densities.covariances import base_fields
from ldcvae.densities.noise import drawn_components, normal, scaled_noise
from ldcvae.encodings import Encodings, Posterior, Whitening
from ldcvae.external import CallableDecoder, CallableEncoder, Decode, Encode, ToLogits, beside, check_networks
from ldcvae.losses import LogDensity, as_float, gaussian_kl, reconstruction_loss, split_posterior
from ldcvae.model_card import card_body, remove_own_card
from ldcvae.networks import SamplerNet, build_decoder, build_encoder, evaluating
from ldcvae.pretrained import read_from

__all__ = ["LDCVAE", "LDCVAEConfig"]


class LDCVAE(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="ldcvae",
    tags=["vae", "svgd"],
    model_card_template="---\n{{ card_data }}\n---\n\n{{ body }}\n",
):
    """Latent distribution consistency VAE (arXiv 2109.10640).

    `decode(sample_latents(n))` draws images in one forward pass of two networks: the sampler net has been
    trained by SVGD to follow the aggregate of the encoder's posteriors, which is what the decoder knows.
    Weights are float32; for another type draw under `torch.autocast`.

    Args:
        config: an `LDCVAEConfig`.
        encoder: for network custom: a module as `from_networks` takes it, or a function as `ldcvae.fit_sampler` does.
        decoder: likewise.

    Raises:
        ValueError: for an unknown network, or one that cannot take images of this shape.

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
    base_noise: Tensor | None

    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        config: LDCVAEConfig,
        encoder: nn.Module | Encode | None = None,
        decoder: nn.Module | Decode | None = None,
    ):
        super().__init__()
        self.config = config
        shape, d = config.image_shape, config.latent_dim
        if config.network == "custom":
            if encoder is None or decoder is None:
                raise ValueError("this model has networks of its own: give them as encoder=… and decoder=…")
            # A module may be either: what kind of encoder it is, only who gives it knows.
            own = isinstance(encoder, nn.Module) and not config.functions
            self.encoder = cast("nn.Module", encoder) if own else CallableEncoder(encoder)
            if config.functions or not isinstance(decoder, nn.Module):
                self.decoder = CallableDecoder(decoder)
            else:
                self.decoder = decoder if config.logits else nn.Sequential(decoder, ToLogits())
        elif encoder is not None or decoder is not None:
            raise ValueError(f"network is {config.network!r}, which has no use for encoder and decoder: say 'custom'")
        else:
            self.encoder = build_encoder(config.network, shape, d, config.width, config.depth)
            self.decoder = build_decoder(config.network, shape, d, config.width, config.depth, config.upsample)
        self._build_sampler()
        self.register_buffer("latent_mean", torch.zeros(d))
        self.register_buffer("whitening_matrix", torch.eye(d))
        self.register_buffer("whitening_inverse", torch.eye(d))

    def _build_sampler(self) -> None:
        d, k = self.config.latent_dim, self.config.base_components
        places = k * self.config.base_centres
        self.sampler = SamplerNet(d, self.config.sampler_width, self.config.sampler_depth)
        self.register_buffer("base_weights", torch.full((places,), 1.0 / max(places, 1)))
        self.register_buffer("base_means", torch.zeros(places, d))
        full = self.config.base_kind == "full"
        # Of one draw: scales · ξ of (k, d, d); or of (k, d, r), then plus noise (k, d) · ξ'.
        scales = torch.eye(d).repeat(k, 1, 1) if full else torch.zeros(k, d, self.config.base_rank)
        self.register_buffer("base_scales", scales)
        self.register_buffer("base_noise", None if full else torch.ones(k, d))

    @classmethod
    def from_networks(
        cls,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        logits: bool = True,
        likelihood: str = "gaussian",
    ) -> "LDCVAE":
        """A model of your own networks, to be trained by `ldcvae.fit`.

        Args:
            encoder: (B, C, H, W) in [0, 1] -> (B, 2d), mean and log variance side by side.
            decoder: (B, d) -> (B, C, H, W).
            image_shape: (C, H, W).
            latent_dim: d.
            logits: whether the decoder gives logits, of which the model takes the sigmoid, or images in [0, 1].
            likelihood: gaussian or bernoulli.

        Raises:
            ValueError: if two images of noise show that the networks give other shapes, or values beyond [0, 1].

        Example:
            >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
            >>> decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
            >>> model = LDCVAE.from_networks(encoder, decoder, image_shape=(1, 8, 8), latent_dim=4)
            >>> LDCVAE.from_networks(encoder, decoder, image_shape=(1, 8, 8), latent_dim=8)
            Traceback (most recent call last):
            ValueError: the encoder gives (2, 8) for (2, 1, 8, 8) images, but latent_dim=8 needs (2, 16): ...
        """
        config = LDCVAEConfig(image_shape, latent_dim, "custom", likelihood=likelihood, logits=logits)
        check_networks(encoder, decoder, image_shape, latent_dim, logits)
        return beside(cls(config, encoder, decoder), encoder, decoder)

    def update_config(self, **changes: Any) -> None:
        """Other values in the configuration that `save_pretrained` writes; weights stay as they are."""
        self.config = self._hub_mixin_config = replace(self.config, **changes)

    def reset_sampler(self, width: int, depth: int, base_components: int, base_centres: int = 1) -> None:
        """An untrained sampler net of another size, with a base mixture of so many components (0: N(0, I)).

        Their covariances are of the kind that suits d and their number. The temperature, which suited the net before,
        is 1 again.

        Raises:
            ValueError: for more than one centre a component where covariances are not full.
        """
        where = self.device
        base = base_fields(self.config.latent_dim, base_components, base_centres)
        self.update_config(sampler_width=width, sampler_depth=depth, temperature=1.0, **base)
        self._build_sampler()
        self.to(where)

    def with_new_sampler(self, width: int, depth: int, base_components: int, base_centres: int = 1) -> "LDCVAE":
        """A model that shares encoder and decoder with this one and has an untrained sampler net of its own."""
        model = copy.copy(self)
        model._buffers = {name: None if value is None else value.clone() for name, value in self._buffers.items()}
        model._modules = dict(self._modules)
        model.reset_sampler(width, depth, base_components, base_centres)
        return model

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

    def set_base(self, weights: Tensor, means: Tensor, spread: Tensor, variances: Tensor | None = None) -> None:
        """Fix the base mixture, in whitened coordinates.

        Args:
            weights: (k · m,), of m centres a component, one after the other.
            means: (k · m, d).
            spread: (k, d, d) covariances where the config's `base_kind` is full, else (k, d, r) factors.
            variances: (k, d) variances beside the factors, of the other kinds.
        """
        self.base_weights.copy_(weights)
        self.base_means.copy_(means)
        if self.base_noise is None:
            self.base_scales.copy_(torch.linalg.cholesky(spread.double()))
        else:
            assert variances is not None
            self.base_scales.copy_(spread)
            self.base_noise.copy_(variances.sqrt())

    def encode(self, images: Tensor) -> Posterior:
        """Posteriors of images (B, C, H, W) in [0, 1]: mean and log variance, (B, d) each.

        Raises:
            ValueError: for images of another shape, or that are not floats.
        """
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: give floats in [0, 1], as of images / 255")
        if images.ndim != 4 or tuple(images.shape[1:]) != self.config.image_shape:
            raise ValueError(f"images are {tuple(images.shape)}, this model takes (B, *{self.config.image_shape})")
        return split_posterior(self.encoder(images.to(self.latent_mean.dtype)))

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
            latents = posterior.draw(normal(latents.shape, generator, latents.device))
        reconstruction = reconstruction_loss(self.decoder(latents).float(), images, self.config.likelihood)
        kl = gaussian_kl(posterior)
        return LogDensity(reconstruction, kl, -self.config.inverse_temperature * reconstruction - kl)

    def encodings(self, images: Tensor, batch_size: int = 1024) -> Encodings:
        """Posteriors of many images (N, C, H, W), uint8 or float in [0, 1], by batches, in evaluation mode."""
        size = rows_at_a_time(self.config.image_shape, batch_size)
        with torch.no_grad(), evaluating(self.encoder):
            parts = [self.encode(as_float(part.to(self.device))) for part in images.split(size)]
        return Encodings(torch.cat([p.mean for p in parts]), torch.cat([p.log_variance for p in parts]))

    def draw_base(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """(n, d) draws of the sampler's base in whitened coordinates, at a temperature: see `sample`."""
        noise = temperature * normal((n, self.config.latent_dim), generator, self.device)
        if self.config.base_components == 0:
            return noise
        where = generator.device if generator is not None else self.device
        component = drawn_components(n, self.base_weights.to(where), generator).to(self.device)
        if self.base_noise is None:
            own = component // self.config.base_centres
            return self.base_means[component] + scaled_noise(noise, self.base_scales, own)
        draws = self.base_means[component] + self.base_noise[component] * noise
        common = temperature * normal((n, self.config.base_rank), generator, self.device)
        return draws + scaled_noise(common, self.base_scales, component)

    @torch.no_grad()
    def sample_latents(
        self, n: int, generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Tensor:
        """(n, d) latents: one forward pass of the sampler net; arguments as of `sample`."""
        temperature = self.config.temperature if temperature is None else temperature
        return self.whitening.unwhiten(self.sampler(self.draw_base(n, generator, temperature)))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float | None = None) -> Tensor:
        """Generate images.

        Args:
            n: how many.
            generator: draws the noise, on its own device: a CPU generator gives the same noise for a model on
                any device.
            temperature: factor of the base's standard deviation: above 1 more various images, below 1 more typical
                ones; None for the configuration's.

        Returns:
            (n, C, H, W) in [0, 1].
        """
        return self.decode(self.sample_latents(n, generator, temperature))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write config.json, model.safetensors and README.md; a card that somebody wrote there stays."""
        remove_own_card(Path(save_directory))  # of a model that was saved here before: the hub's mixin would leave it
        return super().save_pretrained(save_directory, **kwargs)

    def generate_model_card(self, **about: Any) -> ModelCard:
        """`README.md` of `save_pretrained`; `about`, its `model_card_kwargs`, are arguments of `card_body`."""
        return super().generate_model_card(body=card_body(self.config, **about))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "LDCVAE":
        """Load a model that `save_pretrained` wrote: `config.json` and `model.safetensors`.

        Args:
            pretrained_model_name_or_path: a folder; a hub id such as "hub:user/model" only on explicit request by
                that prefix, so that a mistyped folder never turns into a download.
            kwargs: for a model of own networks `encoder` and `decoder`, modules of the same architecture, or the
                functions that `fit_sampler` was given; and see `huggingface_hub.ModelHubMixin.from_pretrained`.

        Raises:
            FileNotFoundError: if the folder holds no model.
            ValueError: if a file is damaged, or the model has networks of its own that are not given, or do not fit.
        """
        source = os.fspath(pretrained_model_name_or_path)
        # Without it weights that are missing would stay at their random start.
        kwargs.setdefault("strict", True)
        with read_from(source):
            model = super().from_pretrained(source.removeprefix("hub:"), **kwargs)
        return beside(model, kwargs.get("encoder"), kwargs.get("decoder")).eval()
