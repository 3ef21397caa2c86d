"""The library's front door: `fit` trains a model on images, `fit_sampler` a sampler net for a trained autoencoder.

In one process, on the CPU or one GPU, without Ray and without files; the pipeline's workers run the same phases, and
with the same images, settings and seed end in the same weights.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ldcvae.checks import check_phases, check_trainable, split_given
from ldcvae.densities.covariances import base_fields
from ldcvae.external import Decode, Encode, check_callables, check_finite, check_scale
from ldcvae.losses import as_float
from ldcvae.model import LDCVAE, LDCVAEConfig
from ldcvae.perceptual import check_features, load_features
from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.phase import Progress
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.settings import AutoencoderSettings, DecoderSettings, SamplerSettings
from ldcvae.training.world import World, seeded_weights

__all__ = ["fit", "fit_sampler"]

Callback = Callable[[dict[str, Any]], None]


@contextmanager
def _training() -> Iterator[None]:
    """Gradients, float32 and the CPU by default, whatever the caller has around the call."""
    at_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), torch.enable_grad(), at_cpu):
            stack.enter_context(context)
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@_training()
def fit(
    images: Tensor,
    model: LDCVAE | None = None,
    *,
    autoencoder: AutoencoderSettings | None = None,
    decoder: DecoderSettings | None = None,
    sampler: SamplerSettings | None = None,
    validation: Tensor | None = None,
    latent_dim: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: Callback | None = None,
) -> LDCVAE:
    """Train encoder, decoder and sampler net on images (arXiv 2109.10640; docs/method.md has the equations).

    Args:
        images: (N, C, H, W), uint8 or floats in [0, 1], N >= 2 and at least as many for training as the
            sampler's base has components.
        model: with networks of your own (`LDCVAE.from_networks`) or another `LDCVAEConfig`; its encoder and decoder
            go on from their weights, its sampler net starts anew; it is trained in place. None: networks that suit
            the size of the images.
        autoencoder: settings of phase 1; None: the defaults, made for some thousand small images.
        decoder: settings of the phase between the two, in which the decoder is trained against a discriminator; None:
            no such phase. `DecoderSettings(epochs=8)` makes images sharper.
        sampler: settings of phase 2; None: the defaults.
        validation: (n, C, H, W) images to validate on; None: a tenth of `images`, held out by the seed.
        latent_dim: d, where no model is given; None: 8 below 16 pixels, else 16.
        seed: of weights, order and noise; the same seed gives the same model, unless networks of your own draw random
            numbers themselves, as dropout does.
        device: where to train; None: the model's or else the images' own.
        progress: show a bar with the time left on stderr.
        callback: called at every validation with a record: `phase`, `step`, losses and validation figures.

    Returns:
        The trained model in eval mode, on `device`; `model.sample(n)` draws images.

    Raises:
        ValueError: before the first step, for images or settings that cannot be trained on.
        FileNotFoundError: if there is no file `decoder.perceptual_weights`.
        NonFiniteLossError: naming term and step, if training diverges.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> images = torch.from_numpy(load_digits().images[:200] / 16).float()[:, None]
        >>> model = fit(images, autoencoder=AutoencoderSettings(epochs=2), sampler=SamplerSettings(steps=5),
        ...             progress=False)
        >>> model.sample(3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 1, 8, 8])
    """
    phase_1, phase_2 = autoencoder or AutoencoderSettings(), sampler or SamplerSettings()
    between = decoder or DecoderSettings()
    # Whatever can be refused is so before the model that was given is touched.
    train, held_out = split_given(images, validation, model, seed)
    check_phases(train, decoder, phase_2)
    if model is not None and model.config.functions:
        raise ValueError("the model's encoder and decoder are functions, which cannot be trained: use fit_sampler")
    if model is not None:
        check_trainable(model, bool(between.epochs))
    if model is not None and latent_dim not in (None, model.config.latent_dim):
        raise ValueError(f"latent_dim is {latent_dim}, but the model's is {model.config.latent_dim}: give one")
    where = _where(device, model, train)
    file = between.features_file
    features = load_features(file, where) if file is not None else None
    if features is not None:
        check_features(features, _shape(train), where)
    with seeded_weights(seed):  # everything later is keyed by step
        if model is None:
            model = LDCVAE(_config(train, phase_1, phase_2, latent_dim))
        else:
            model.reset_sampler(phase_2.width, phase_2.depth, *phase_2.base_shape)
            model.update_config(inverse_temperature=phase_1.inverse_temperature, decoder_epochs=0, adversarial=0.0)
    model = model.to(where).train()
    world = World(device=where)
    with _shown(progress) as show:
        first = AutoencoderPhase(model, train, held_out, phase_1, world, seed)
        for _ in first.epochs(show):
            if callback is not None:
                callback(first.history[-1])
        first.adopt_average()
        if between.epochs:
            encodings = encode_split(model.eval(), train, world)
            second = DecoderPhase(
                model,
                train,
                encodings,
                held_out,
                between,
                world,
                seed,
                autoencoder=phase_1,
                sampler=phase_2,
                features=features,
            )
            for _ in second.epochs(show):
                if callback is not None:
                    callback(second.history[-1])
            second.adopt_average()
            model.update_config(decoder_epochs=between.epochs, adversarial=float(between.adversarial))
        return _sampler(model, train, held_out, phase_2, seed, bool(phase_1.fused), show, callback, between.fits_base)


@_training()
def fit_sampler(
    autoencoder: LDCVAE | tuple[Encode, Decode],
    images: Tensor,
    *,
    sampler: SamplerSettings | None = None,
    validation: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: Callback | None = None,
) -> LDCVAE:
    """Train a sampler net for the latents of an autoencoder that is trained already; its weights stay as they are.

    Args:
        autoencoder: an `LDCVAE`, whose sampler net is replaced in place, or a pair (encode, decode) of any other
            library's: `encode(images (B, C, H, W) in [0, 1])` gives mean and log variance, (B, d) each, or points
            (B, d); `decode(latents (B, d))` gives images (B, C, H, W) in [0, 1]. Modules are called like functions.
            docs/autoencoders.md has an example.
        images: (N, C, H, W) of the kind it was trained on, uint8 or floats in [0, 1], N >= 2.
        sampler: settings; None: the defaults.
        validation: as in `fit`, like the arguments after it.
        seed: of weights and noise.
        device: where to train; None: the model's or the images' own. A pair must be there already.
        progress: show a bar.
        callback: called at every validation.

    Returns:
        The model in eval mode. Of a pair `save_pretrained` keeps the sampler net and what it needs, and
        `LDCVAE.from_pretrained(path, encoder=encode, decoder=decode)` takes the pair again.

    Raises:
        ValueError: before the first step, for images, settings or callables that do not fit.
        NonFiniteLossError: naming term and step, if training diverges.

    Example:
        >>> mixing = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        >>> pair = (lambda x: x.flatten(1) @ mixing.T, lambda z: torch.sigmoid(z @ mixing).unflatten(1, (1, 2, 2)))
        >>> model = fit_sampler(pair, torch.rand(100, 1, 2, 2), sampler=SamplerSettings(steps=5), progress=False)
        >>> model.sample_latents(7).shape
        torch.Size([7, 3])
    """
    settings = sampler or SamplerSettings()
    known = autoencoder if isinstance(autoencoder, LDCVAE) else None
    train, held_out = split_given(images, validation, known, seed)
    check_phases(train, None, settings)
    where = _where(device, known, train)
    if isinstance(autoencoder, LDCVAE):
        model = autoencoder
    else:
        if not isinstance(autoencoder, (tuple, list)) or len(autoencoder) != 2:
            found = type(autoencoder).__name__
            raise ValueError(f"autoencoder must be an LDCVAE or a pair (encode, decode), got {found}")
        dim = check_callables(*autoencoder, as_float(train[:2]).to(where))
        with seeded_weights(seed):  # of a first sampler net, so that the caller's random numbers stay as they are
            model = LDCVAE(LDCVAEConfig(_shape(train), dim, "custom", functions=True), *autoencoder).to(where)
    with seeded_weights(seed):
        model.reset_sampler(settings.width, settings.depth, *settings.base_shape)
    with _shown(progress) as show:
        return _sampler(model.to(where), train, held_out, settings, seed, True, show, callback)


def _sampler(
    model: LDCVAE,
    train: Tensor,
    held_out: Tensor,
    settings: SamplerSettings,
    seed: int,
    fused: bool,
    show: Progress | None,
    callback: Callback | None,
    fitted: bool = False,
) -> LDCVAE:
    """Phase 2, on a model whose encoder and decoder stay as they are; it is left in eval mode."""
    model.eval()
    world = World(device=model.device)
    encodings, held = (encode_split(model, part, world) for part in (train, held_out))
    check_finite(encodings, "training")
    check_finite(held, "validation")
    if model.config.functions:
        check_scale(encodings)
    second = SamplerPhase(model, encodings, held, settings, world, seed, fused, fitted=fitted)
    for _ in second.blocks(settings.checkpoint_steps, show):
        if callback is not None:
            callback(second.history[-1])
    second.adopt_average()
    return model


def _where(device: torch.device | str | None, model: LDCVAE | None, images: Tensor) -> torch.device:
    where = model.device if model is not None else images.device
    if device is not None:
        where = torch.device(device)
    if where.type == "mps":
        raise ValueError("device mps: Apple's GPUs have no float64, which fits to latents need; use device='cpu'")
    return where


def _shape(images: Tensor) -> tuple[int, int, int]:
    return images.shape[1], images.shape[2], images.shape[3]


def _config(
    images: Tensor, autoencoder: AutoencoderSettings, sampler: SamplerSettings, latent_dim: int | None
) -> LDCVAEConfig:
    """Networks that suit the images: those of the pipeline's defaults for tiny ones, convolutions for larger ones."""
    tiny = max(images.shape[2:]) < 16
    dim = latent_dim if latent_dim is not None else 8 if tiny else 16
    if dim < 1:
        raise ValueError(f"latent_dim must be at least 1, got {dim}")
    return LDCVAEConfig(
        image_shape=_shape(images),
        latent_dim=dim,
        width=128 if tiny else 32,
        depth=2 if tiny else 1,
        inverse_temperature=autoencoder.inverse_temperature,
        sampler_width=sampler.width,
        sampler_depth=sampler.depth,
        **base_fields(dim, *sampler.base_shape),
    )


@contextmanager
def _shown(wanted: bool) -> Iterator[Progress | None]:
    """A bar for each phase, with the time left and the newest figures."""
    if not wanted:
        yield None
        return
    from tqdm import tqdm

    bars: dict[str, tqdm[Any]] = {}
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"

    def show(record: dict[str, Any]) -> None:
        phase = record["phase"]
        if phase not in bars:
            for bar in bars.values():
                bar.close()
            bars[phase] = tqdm(desc=phase, total=1.0, bar_format=form, file=sys.stderr, mininterval=0.5)
        figures = {name: value for name, value in record.items() if name.startswith("validation_")}
        if figures:
            text = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in figures.items())
            bars[phase].set_postfix_str(text, refresh=False)
        bars[phase].update(record["done"] - bars[phase].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
