"""Phase 1: encoder and decoder follow the Gibbs posterior of the training images."""

from dataclasses import fields

import torch
from torch import Tensor, nn

from ldcvae.batches import Chunks
from ldcvae.densities.kernel_mixture import KernelMixture
from ldcvae.encodings import Encodings
from ldcvae.losses import as_float
from ldcvae.metrics.reconstruction import reconstruction_error
from ldcvae.model import LDCVAE
from ldcvae.networks import evaluating
from ldcvae.objective import elbo_step, svgd_step
from ldcvae.training.encode import encode_split
from ldcvae.training.epochs import EpochPhase
from ldcvae.training.feed import StoredImages
from ldcvae.training.phase import Cast
from ldcvae.training.settings import AutoencoderSettings
from ldcvae.training.world import World, keyed_generator

__all__ = ["AutoencoderPhase", "resolve_auto", "use_memory_format"]

_MOST_KERNELS = 4096  # of the learnt energy, all of which every latent of every step looks at


def resolve_auto(settings: AutoencoderSettings, device: torch.device, network: nn.Module) -> AutoencoderSettings:
    """Replace every `auto` by what is right for the device and network.

    Example:
        >>> resolve_auto(AutoencoderSettings(), torch.device("cpu"), nn.Conv2d(1, 1, 3)).channels_last
        True
    """
    cuda = device.type == "cuda"
    choices = {
        # CPUs without AVX-512 BF16 run bfloat16 an order of magnitude slower than float32; older GPUs emulate it.
        "bf16": cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        # Of a weight or buffer of five dimensions torch knows no such format.
        "channels_last": any(weight.ndim == 4 for weight in network.parameters())
        and all(part.ndim <= 4 for part in (*network.parameters(), *network.buffers())),
        "fused": True,
        "compile": False,  # no gain has been measured, and one compiled network failed (docs/performance.md)
    }
    plain = {field.name: getattr(settings, field.name) for field in fields(AutoencoderSettings)}
    return AutoencoderSettings(**plain | {key: value for key, value in choices.items() if plain[key] == "auto"})


def use_memory_format(model: LDCVAE, settings: AutoencoderSettings) -> None:
    """Give encoder and decoder the memory format of phase 1, which a checkpoint may be past.

    Convolutions in another format round otherwise, and so would encodings, and all that is trained on them.

    Example:
        >>> from ldcvae import LDCVAEConfig
        >>> model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=2, network="conv", width=4))
        >>> use_memory_format(model, AutoencoderSettings())
    """
    if resolve_auto(settings, model.device, model).channels_last:
        for network in (model.encoder, model.decoder):
            network.to(memory_format=torch.channels_last)


class AutoencoderPhase(EpochPhase):
    """Phase 1: encoder and decoder.

    Args:
        model: on its device.
        images: (N, C, H, W) uint8 training images, the same on all ranks and moved to the device once; or the split
            on storage, which is streamed.
        validation: (n, C, H, W) uint8 validation images, or the split on storage; they pass the device in parts.
        config: settings of this phase; every `auto` becomes what is right for device and network.
        world: this rank.
        seed: of the images' order and of noise.
        objective: a step of another kind of autoencoder, `(encoder, decoder, images, noise) -> losses`, in place of
            `config.objective`; its own weights are trained too.

    Raises:
        ValueError: if there are fewer training images than ranks, or an objective with more than one rank: its own
            weights would follow this rank's images alone.
    """

    name = "autoencoder"

    def __init__(
        self,
        model: LDCVAE,
        images: Tensor | StoredImages,
        validation: Tensor | Chunks,
        config: AutoencoderSettings,
        world: World,
        seed: int,
        objective: nn.Module | None = None,
    ):
        if objective is not None and world.size > 1:
            raise ValueError(f"an objective of one's own trains on one rank, got {world.size}")
        config = resolve_auto(config, world.device, model)
        self.objective = objective
        self.model, self.config = model, config
        autoencoder = nn.ModuleDict({"encoder": model.encoder, "decoder": model.decoder})
        if objective is not None:
            autoencoder["objective"] = objective
        super().__init__(
            autoencoder,
            images,
            config.batch_size,
            config.epochs,
            world,
            seed,
            channels_last=bool(config.channels_last),
            rate=config.learning_rate,
            decay=config.weight_decay,
            ema=config.ema,
            fused=bool(config.fused),
        )
        self.validation = validation
        encoder, decoder = (Cast(network, bool(config.bf16)) for network in (model.encoder, model.decoder))
        if config.compile:
            # Batches have one size; what is compiled for any died on an H200 (torch 2.11) of a misaligned address.
            encoder.compile(dynamic=False)
            decoder.compile(dynamic=False)
        self.encoder, self.decoder = world.wrap(encoder), world.wrap(decoder)
        # The learnt latent energy, renewed every epoch (consistency > 0 only).
        self._energy: KernelMixture | None = None
        self._component: Tensor | None = None  # of each image: its kernel's number there, -1 for none

    def _begin_epoch(self) -> None:
        if self.config.consistency:
            self._renew_energy()

    def _losses(self) -> dict[str, Tensor]:
        config, device = self.config, self.world.device
        particles = config.particles
        noise = keyed_generator(device, self.seed, "noise", self.step)
        epsilon = torch.randn(self.batch, particles, self.model.config.latent_dim, generator=noise, device=device)
        pixels, where = self.feed.batch(self.step)
        images = as_float(pixels)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        own_noise = epsilon[self.world.rows(self.batch)]
        if self.objective is not None:
            return self.objective(self.encoder, self.decoder, images, own_noise)
        step = svgd_step if config.objective == "svgd" else elbo_step
        score = None
        if (energy := self._energy) is not None:
            component = where if self._component is None else self._component[where]

            def score(z: Tensor) -> Tensor:
                # Leave-one-out: an image that saw its own kernel would be pulled towards where it already is.
                return energy.score(z, exclude=component.repeat_interleave(particles))

        return step(
            self.encoder,
            self.decoder,
            images,
            own_noise,
            inverse_temperature=config.inverse_temperature,
            likelihood=self.model.config.likelihood,
            consistency=config.consistency,
            latent_score=score,
        )

    def _renew_energy(self) -> None:
        """Kernel mixture over the current encodings, component i from image i; the floor keeps it from collapsing.

        Of a large split 4,096 images have a kernel, others in each epoch and the same on all ranks.
        """
        recent = encode_split(self.model, self.feed.images, self.world)
        if (n := len(recent)) > _MOST_KERNELS:
            generator = keyed_generator("cpu", self.seed, "kernels", self.epoch)
            chosen = torch.randperm(n, generator=generator)[:_MOST_KERNELS].to(self.world.device)
            self._component = torch.full((n,), -1, device=self.world.device)
            self._component[chosen] = torch.arange(len(chosen), device=self.world.device)
            recent = Encodings(recent.mean[chosen], recent.log_variance[chosen])
        self._energy = KernelMixture(recent.mean, recent.log_variance, self.config.consistency_floor)

    def validation_error(self) -> float:
        """Mean squared error per pixel of reconstructed validation images, with the averaged weights."""
        network = self.averaged

        def reconstruct(images: Tensor) -> Tensor:
            mean = network["encoder"](images).float().chunk(2, dim=1)[0]  # type: ignore[index]
            return torch.sigmoid(network["decoder"](mean).float())  # type: ignore[index]

        with evaluating(network):
            return reconstruction_error(reconstruct, self.validation, self.world.device)
