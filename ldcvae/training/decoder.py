"""Phase `decoder`, between autoencoder and sampler: the decoder learns to make sharp images of what it will be fed.

The encoder is frozen, so latents do not move and every sampler stays valid. The decoder goes on with its
reconstruction loss and follows a patch discriminator beside it, on draws of each image's posterior.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ldcvae.batches import Chunks
from ldcvae.discriminator import adaptive_factor, discriminator_loss, generator_loss, patch_discriminator
from ldcvae.encodings import Encodings, Posterior
from ldcvae.losses import as_float, reconstruction_loss
from ldcvae.metrics.reconstruction import reconstruction_error
from ldcvae.model import LDCVAE
from ldcvae.networks import evaluating
from ldcvae.perceptual import feature_distance
from ldcvae.training.autoencoder import resolve_auto
from ldcvae.training.base import fit_base
from ldcvae.training.epochs import EpochPhase
from ldcvae.training.feed import StoredImages
from ldcvae.training.phase import Cast
from ldcvae.training.settings import AutoencoderSettings, DecoderSettings, SamplerSettings
from ldcvae.training.world import World, keyed_generator, seeded_weights

__all__ = ["DecoderPhase"]

_BETAS = (0.5, 0.99)  # a discriminator is a moving target: less momentum than for a loss that stays


class DecoderPhase(EpochPhase):
    """The decoder against a patch discriminator, on frozen encodings.

    Args:
        model: on its device; of encoder and sampler nothing is changed, but whitening and base of the sampler are
            fitted where `noise` or `sampler_draws` want them, by rank 0 for all.
        images: (N, C, H, W) uint8 training images, or the split on storage, as phase 1 takes them.
        encodings: of the training images, in their order, the same on all ranks.
        validation: (n, C, H, W) uint8 validation images, or the split on storage.
        config: settings of this phase, `epochs` at least 1.
        world: this rank.
        seed: of weights of the discriminator, the images' order and draws.
        autoencoder: settings of phase 1: how fast to compute, and the batch size if this phase has none of its own.
        sampler: settings of phase 2: its base is what `sampler_draws` are drawn from.
        features: network of the perceptual loss, on the device (`ldcvae.perceptual.load_features`).
        state: of an earlier one, to go on from; the model's own weights and buffers are loaded by the caller.

    Raises:
        ValueError: if there are fewer training images than ranks, images are too small for the discriminator, or
            `perceptual` has no `features`.
    """

    name = "decoder"
    of_discriminator = ("discriminator", "adversarial", "fake_score", "real_score")
    """Those of its losses that are not finite where the discriminator diverges."""

    def __init__(
        self,
        model: LDCVAE,
        images: Tensor | StoredImages,
        encodings: Encodings,
        validation: Tensor | Chunks,
        config: DecoderSettings,
        world: World,
        seed: int,
        *,
        autoencoder: AutoencoderSettings,
        sampler: SamplerSettings,
        features: nn.Module | None = None,
        state: dict[str, Any] | None = None,
    ):
        if config.perceptual and features is None:
            raise ValueError("perceptual needs a network: give its features")
        speed = resolve_auto(autoencoder, world.device, model.decoder)
        bf16, channels_last, compiled = bool(speed.bf16), bool(speed.channels_last), bool(speed.compile)
        self.model, self.config, self.encodings, self.validation = model, config, encodings, validation
        self.features = features
        self.discriminator = _discriminator(model, config, seed) if config.adversarial else None
        more = []
        if self.discriminator is not None:
            if autoencoder.channels_last:  # auto is right for convolutions, whatever the decoder is made of
                self.discriminator.to(memory_format=torch.channels_last)
            rate = config.discriminator_learning_rate
            more = [{"params": list(self.discriminator.parameters()), "lr": rate}]
        super().__init__(
            model.decoder,
            images,
            config.batch_size or autoencoder.batch_size,
            config.epochs,
            world,
            seed,
            channels_last=channels_last,
            rate=config.learning_rate,
            decay=0.0,
            ema=config.ema,
            fused=bool(speed.fused),
            betas=_BETAS,
            more=more,
        )
        model.eval()
        model.decoder.train()
        decoder = Cast(model.decoder, bf16)
        if compiled and not config.adaptive:  # a compiled backward pass gives no gradient of a part of the loss first
            decoder.compile(dynamic=False)
        self.decoder = world.wrap(decoder)
        self.judge = Cast(self.discriminator, bf16) if self.discriminator is not None else None
        self.shown = _shown(config, self.batch, world)
        if (config.noise or config.fits_base) and state is None:
            if world.rank == 0:
                fit_base(model, encodings, sampler if config.fits_base else None, seed)
            world.share(model.buffers())
        if state is not None:
            self.load(state)

    def _share_of_rate(self, step: int) -> float:
        """What is left of the peak rates: a line to zero."""
        return max(0.0, 1.0 - step / self.total)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from here: the discriminator too, whose optimizer is the decoder's."""
        judge = self.discriminator.state_dict() if self.discriminator is not None else None
        return super().state() | {"discriminator": judge}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the model's own weights and buffers are loaded by the caller."""
        super().load(state)
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])

    def _latents(self, where: Tensor) -> Tensor:
        """Draws of the posteriors of this rank's images, then its draws of the sampler's base."""
        model, device = self.model, self.world.device
        generator = keyed_generator(device, self.seed, "decoder", self.step)
        rows, size = self.world.rows(self.batch), (self.batch, model.config.latent_dim)
        epsilon = torch.randn(size, generator=generator, device=device)[rows]
        latents = Posterior(self.encodings.mean[where], self.encodings.log_variance[where]).draw(epsilon)
        if self.config.noise:
            white = torch.randn(size, generator=generator, device=device)[rows]
            latents = latents + self.config.noise * white @ model.whitening_inverse
        if self.shown.draws:
            base = model.draw_base(self.shown.draws, generator)[self.shown.own_draws]
            latents = torch.cat([latents, model.whitening.unwhiten(base)])
        return latents

    def _losses(self) -> dict[str, Tensor]:
        config = self.config
        pixels, where = self.feed.batch(self.step)
        images = as_float(pixels)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = self.decoder(self._latents(where))
        own = logits[: len(images)]
        loss = reconstruction_loss(own, images, self.model.config.likelihood).mean()
        parts = {"reconstruction": loss.detach()}
        if config.perceptual and self.features is not None:
            distance = feature_distance(self.features, torch.sigmoid(own), images).mean()
            loss = loss + config.perceptual * distance
            parts = {"perceptual": distance.detach()} | parts
        value = loss.detach()
        if self.judge is not None:
            decoded = torch.sigmoid(logits if self.shown.decoded is None else logits[self.shown.decoded])
            real = images if self.shown.images is None else images[self.shown.images]
            judged, slope = self._compete(self.judge, real, decoded.detach().requires_grad_())
            parts = judged | parts
            if self.step >= config.warm_up:
                pull = (decoded * slope).sum()  # has the gradient of the generator's loss
                weight = self._weight(loss, pull)
                loss, value = loss + weight * pull, value + weight * judged["adversarial"]
        loss.backward()
        # From the sum to its parts, what fails first last: a decoder that is not finite spoils the scores too.
        return {"loss": value} | parts

    def _compete(self, judge: nn.Module, real: Tensor, fake: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """One step's gradients on the discriminator; its losses and the slope of the generator's loss at `fake`.

        Both losses are made of the same scores, by one pass over the fakes, as the discriminator is before the step.
        """
        assert self.discriminator is not None
        weights = list(self.discriminator.parameters())
        with parametrize.cached():  # one power iteration, and one weight for both passes
            for layer in self.discriminator:
                _ = getattr(layer, "weight", None)  # made here: under autocast its norm would have 8 bits
            of_real, of_fake = judge(real), judge(fake)
        share = self.shown.share
        generator, loss = share * generator_loss(of_fake), share * discriminator_loss(of_real, of_fake)
        (slope,) = torch.autograd.grad(generator, fake, retain_graph=True)
        gradients = torch.autograd.grad(loss, weights)
        self.world.average(gradients)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = torch.empty_like(weight).copy_(gradient)  # in its memory format, as fused Adam needs it
        with torch.no_grad():
            scores = {"fake_score": share * of_fake.mean(), "real_score": share * of_real.mean()}
        return {"discriminator": loss.detach(), "adversarial": generator.detach()} | scores, slope

    def _weight(self, loss: Tensor, pull: Tensor) -> Tensor | float:
        if not self.config.adaptive:
            return self.config.adversarial
        last = [weight for weight in self.network.parameters() if weight.ndim > 1][-1]
        slopes = [torch.autograd.grad(part, last, retain_graph=True)[0] for part in (loss, pull)]
        self.world.average(slopes)
        return self.config.adversarial * adaptive_factor(slopes[0], slopes[1], self.config.adaptive_cap)

    def validation_error(self) -> float:
        """Mean squared error per pixel of reconstructed validation images, with the averaged weights."""
        averaged = self.averaged

        def reconstruct(images: Tensor) -> Tensor:
            return torch.sigmoid(averaged(self.model.encode(images).mean).float())

        with evaluating(averaged):
            return reconstruction_error(reconstruct, self.validation, self.world.device)


class _Shown(NamedTuple):
    """What the discriminator sees of a batch: the same images for any number of ranks.

    Attributes:
        images: (k,) which of this rank's images; None: all, in their order.
        decoded: (k,) which of the decoded latents, own images' first; None: all, in their order.
        draws: of the sampler's base, over all ranks.
        own_draws: this rank's part of them.
        share: k of the ranks' mean, 1 where it divides evenly: makes a mean of means the mean.
    """

    images: Tensor | None
    decoded: Tensor | None
    draws: int
    own_draws: slice
    share: float


def _shown(config: DecoderSettings, batch: int, world: World) -> _Shown:
    if not config.adversarial:
        return _Shown(None, None, 0, slice(0, 0), 1.0)
    rows = world.rows(batch)
    judged = _evenly(batch, max(config.judged, 1 / batch))
    if (count := config.judged_of(batch)) < world.size:
        raise ValueError(f"judged={config.judged:g} of {batch} images are {count}, fewer than the {world.size} ranks")
    drawn = torch.zeros(batch, dtype=torch.bool)  # of the images: those in whose place a draw of the base is shown
    drawn[judged] = _evenly(count, config.sampler_draws)
    before, own = int(drawn[: rows.start].sum()), int(drawn[rows].sum())
    images = judged[rows].nonzero()[:, 0]
    decoded = images.clone()
    decoded[drawn[rows][images]] = rows.stop - rows.start + torch.arange(own)
    share = len(images) * world.size / count
    everything = len(images) == rows.stop - rows.start
    return _Shown(
        None if everything else images.to(world.device),
        None if everything and own == 0 else decoded.to(world.device),
        int(drawn.sum()),
        slice(before, before + own),
        share,
    )


def _evenly(count: int, share: float) -> Tensor:
    """(count,) which of so many make up a share, spread evenly over them.

    Example:
        >>> _evenly(6, 0.5).tolist()
        [False, True, False, True, False, True]
    """
    steps = (torch.arange(count + 1, dtype=torch.float64) * share + 1e-9).floor()
    return steps[1:] > steps[:-1]


def _discriminator(model: LDCVAE, config: DecoderSettings, seed: int) -> nn.Sequential:
    channels, height, width = model.config.image_shape
    with seeded_weights(keyed_generator("cpu", seed, "discriminator").initial_seed()):
        network = patch_discriminator(channels, config.width, side=min(height, width))
    return network.to(model.device)
