"""The trained model on storage: `model/config.json` and `model/model.safetensors`, all that sampling needs.

`train/best/` has the same two files, from the validation at which the sampler was best. Where phase `decoder`
trained the decoder on, `train/decoder-before.safetensors` has its weights of before, for who wants to compare. Until
a training ends, it keeps both beside its checkpoints: one of another configuration may run, and end, in between.
"""

import copy
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from ldcvae.densities.covariances import base_fields
from ldcvae.model import LDCVAE, LDCVAEConfig
from ldcvae.perceptual import check_features, load_features
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.sections import Config
from pipeline.store.folder import Folder
from pipeline.store.run import Run
from pipeline.store.weights import perceptual_content

__all__ = [
    "BEFORE_FILE",
    "BEST_FILES",
    "MODEL_FILES",
    "build_model",
    "load_before",
    "load_model",
    "perceptual_features",
    "publish",
    "write_before",
    "write_best",
    "write_model",
]

MODEL_FILES = ("model/config.json", "model/model.safetensors")
BEST_FILES = ("train/best/config.json", "train/best/model.safetensors")
BEFORE_FILE = "train/decoder-before.safetensors"


def build_model(config: Config, image_shape: tuple[int, int, int]) -> LDCVAE:
    """An untrained model as the config describes it.

    Raises:
        ValueError: if the network cannot take images of this shape.

    Example:
        >>> build_model(Config(), (1, 8, 8)).config.network
        'auto'
    """
    model, decoder, sampler = config.model, config.decoder, config.sampler
    return LDCVAE(
        LDCVAEConfig(
            image_shape=image_shape,
            latent_dim=model.latent_dim,
            network=model.network,
            width=model.width,
            depth=model.depth,
            likelihood=model.likelihood,
            inverse_temperature=config.train.inverse_temperature,
            upsample=model.upsample,
            decoder_epochs=decoder.epochs,
            adversarial=decoder.adversarial if decoder.epochs else 0.0,
            sampler_width=sampler.width,
            sampler_depth=sampler.depth,
            **base_fields(model.latent_dim, *sampler.base_shape),
        )
    )


def perceptual_features(
    config: Config, image_shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> nn.Module | None:
    """The network in that file, on a device.

    Raises:
        ConfigError: if it cannot be read, is no TorchScript, or gives no features of images of this shape (C, H, W).
    """
    content = perceptual_content(config)
    if content is None:
        return None
    try:
        network = load_features(content, device)
        check_features(network, image_shape, device)
    except ValueError as error:
        raise ConfigError(f"decoder.perceptual_weights: {config.decoder.perceptual_weights}: {error}") from None
    return network


def write_model(folder: Folder, model: LDCVAE, files: tuple[str, ...] = MODEL_FILES) -> None:
    """Write the model's files under the run's folder."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        for name in files:
            folder.write(name, (Path(temporary) / Path(name).name).read_bytes())


def _own(training: str, file: str) -> str:
    """Where a training keeps a file of `train/` until it ends."""
    return file.replace("train/", f"train/{training}/", 1)


def write_best(folder: Folder, training: str, model: LDCVAE, sampler: nn.Module, validations: list[float]) -> None:
    """Keep the training's `best/` at the sampler's best validation.

    To be called before the checkpoint that remembers this validation: a run that goes on from it must find the files.

    Args:
        folder: the run's.
        training: name of the folder of its checkpoints.
        model: with the trained encoder and decoder.
        sampler: its averaged weights.
        validations: figures so far, the lowest best, this sampler's the last.
    """
    if validations[-1] > min(validations):
        return
    best = copy.deepcopy(model)
    best.sampler.load_state_dict(sampler.state_dict())
    write_model(folder, best, tuple(_own(training, file) for file in BEST_FILES))


def write_before(folder: Folder, training: str, model: LDCVAE) -> None:
    """Keep the decoder's weights as they are before phase `decoder`; to be called before its first checkpoint."""
    weights = {name: part.contiguous() for name, part in model.decoder.state_dict().items()}
    folder.write(_own(training, BEFORE_FILE), save(weights))


def publish(folder: Folder, training: str, before: bool) -> list[str]:
    """Give what a training has kept its place in `train/`; the files' names.

    Args:
        folder: the run's.
        training: name of the folder of its checkpoints.
        before: whether it had a phase `decoder`.
    """
    found = []
    for file in (*BEST_FILES, *([BEFORE_FILE] if before else [])):
        if folder.exists(own := _own(training, file)):
            folder.write(file, folder.read(own))
        elif file == BEFORE_FILE and not folder.exists(file):
            continue  # an earlier version began this training in phase `decoder`, and kept none
        found.append(file)
    return found


def load_before(run: Run, model: LDCVAE) -> LDCVAE | None:
    """The run's model with the decoder that phase `decoder` began with; None where there was no such phase.

    Args:
        run: whose training has finished.
        model: as `load_model` gives it; it is not changed.

    Raises:
        PipelineError: if the file is damaged.
    """
    if BEFORE_FILE not in run.made("train").outputs:
        return None
    before = copy.deepcopy(model)
    try:
        before.decoder.load_state_dict(load(run.output("train", BEFORE_FILE)))
    except (SafetensorError, RuntimeError) as error:
        raise _unreadable(run, BEFORE_FILE, error) from None
    return before


def _unreadable(run: Run, name: str, error: Exception) -> PipelineError:
    return PipelineError(
        f"{run.folder.url}/{name} is no model that this version can load: {error}; run "
        "`python -m pipeline.train --force` with the same config"
    )


def load_model(run: Run) -> LDCVAE:
    """The run's model on the CPU, in eval mode, its files' hashes checked; it draws at `sample.temperature`.

    Raises:
        PipelineError: if `pipeline.train` has not finished or a file is damaged.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for name in MODEL_FILES:
            content = run.output("train", name)
            (Path(temporary) / Path(name).name).write_bytes(content)
        try:
            model = LDCVAE.from_pretrained(temporary)
        except Exception as error:  # whole, but no model of ours: its files may hold anything
            raise _unreadable(run, "model", error) from None
    model.update_config(temperature=run.config.sample.temperature)
    return model
