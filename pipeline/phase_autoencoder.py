"""Phase 1: encoder and decoder follow the Gibbs posterior of the training images."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldcvae.energy import KernelMixture
from ldcvae.model import LDCVAE, as_float, reconstruction_loss
from ldcvae.objective import elbo_step, svgd_step
from pipeline.phase import Cast, Phase, Progress
from pipeline.schema import TrainConfig
from pipeline.world import World, keyed_generator

__all__ = ["AutoencoderPhase"]


class AutoencoderPhase(Phase):
    """Phase 1: encoder and decoder.

    Args:
        model: on its device.
        pixels: (N, C, H, W) uint8 training images, the same on all ranks; moved to the device once.
        validation: (n, C, H, W) uint8 validation images.
        config: the `train` section, every `auto` resolved.
        world: this rank.
        seed: of permutations and noise.

    Raises:
        ValueError: if there are fewer training images than ranks.
    """

    name = "autoencoder"

    def __init__(
        self, model: LDCVAE, pixels: Tensor, validation: Tensor, config: TrainConfig, world: World, seed: int
    ):
        self.model, self.config, self.world, self.seed = model, config, world, seed
        self.batch = min(config.batch_size, len(pixels) // world.size * world.size)
        if self.batch == 0:
            raise ValueError(f"{len(pixels)} training images are too few for {world.size} workers")
        self.steps_per_epoch = len(pixels) // self.batch
        autoencoder = nn.ModuleDict({"encoder": model.encoder, "decoder": model.decoder})
        if config.channels_last:
            # Before the averaged copy is made: averaging two memory formats would take a slow path.
            autoencoder.to(memory_format=torch.channels_last)
        total = config.epochs * self.steps_per_epoch
        super().__init__(
            autoencoder, total, config.learning_rate, config.weight_decay, config.ema, bool(config.fused)
        )
        self.pixels, self.validation = pixels.to(world.device), validation.to(world.device)
        encoder, decoder = (Cast(network, bool(config.bf16)) for network in (model.encoder, model.decoder))
        if config.compile:
            encoder.compile()
            decoder.compile()
        self.encoder, self.decoder = world.wrap(encoder), world.wrap(decoder)
        # The learnt latent energy, renewed every epoch (consistency > 0 only).
        self._energy: KernelMixture | None = None

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.step // self.steps_per_epoch

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.pixels), generator=keyed_generator("cpu", self.seed, "order", epoch))

    def batch_indices(self, step: int) -> Tensor:
        """Positions in the training split of the images of a step, over all ranks."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[within * self.batch : (within + 1) * self.batch]

    def epochs(self, progress: Progress | None = None) -> Iterator[int]:
        """Train epoch by epoch from the current position; yields the number of epochs completed.

        Raises:
            NonFiniteLossError: naming term and step, before the epoch counts as completed.
        """
        while self.step < self.total:
            started = time.perf_counter()
            epoch = self.epoch
            order = self._order(epoch).to(self.world.device)
            noise = keyed_generator(self.world.device, self.seed, "noise", epoch)
            said = started
            if self.config.consistency:
                self._renew_energy()
            for within in range(self.steps_per_epoch):
                index = order[within * self.batch : (within + 1) * self.batch]
                self.monitor.add(self.step, self._losses(index, noise))
                self._update()
                if progress is not None and (now := time.perf_counter()) - said > 1.0:
                    said = now
                    done = self.step / self.total
                    rate = (within + 1) * self.batch / (now - started)
                    progress({"phase": self.name, "done": done, "images_per_s": rate})
            losses = self.monitor.read(self.world)
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            record = {"phase": self.name, "epoch": self.epoch, "step": self.step} | losses
            record["validation_mse"] = self.validation_error()
            record["images_per_s"] = self.steps_per_epoch * self.batch / elapsed
            record |= {"seconds": round(self.seconds, 3), "time": round(time.time(), 3)}
            self.history.append(record)
            if progress is not None:
                progress({"done": self.step / self.total} | record)
            yield self.epoch

    def _losses(self, index: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        config, device = self.config, self.world.device
        particles = config.particles
        epsilon = torch.randn(self.batch, particles, self.model.config.latent_dim, generator=noise, device=device)
        rows = self.world.rows(self.batch)
        own = index[rows]
        images = as_float(self.pixels[own])
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        step = svgd_step if config.objective == "svgd" else elbo_step
        score = None
        if (energy := self._energy) is not None:

            def score(z: Tensor) -> Tensor:
                # Leave-one-out: an image that saw its own kernel would be pulled towards where it already is.
                return energy.score(z, exclude=own.repeat_interleave(particles))

        return step(
            self.encoder,
            self.decoder,
            images,
            epsilon[rows],
            inverse_temperature=config.inverse_temperature,
            likelihood=self.model.config.likelihood,
            consistency=config.consistency,
            latent_score=score,
        )

    def _renew_energy(self) -> None:
        """Kernel mixture over the current encodings, component i from image i; the floor keeps it from collapsing."""
        recent = self.model.encodings(self.pixels)
        self._energy = KernelMixture(recent.mean, recent.log_variance, self.config.consistency_floor)

    @torch.no_grad()
    def validation_error(self) -> float:
        """Mean squared error per pixel of reconstructed validation images, with the averaged weights."""
        network = self.averaged
        total = 0.0
        for part in self.validation.split(1024):
            images = as_float(part)
            mean = network["encoder"](images).float().chunk(2, dim=1)[0]  # type: ignore[index]
            logits = network["decoder"](mean).float()  # type: ignore[index]
            total += float(reconstruction_loss(logits, images, "gaussian").sum())
        return total / self.validation.numel()
