"""Train one autoencoder of a comparison: the same networks, batch, epochs and optimizer for all of them."""

import time
from typing import Any

import torch
from torch import nn

from ldcvae.rivals.objectives import RegularisedObjective, VampObjective, WassersteinObjective
from ldcvae.encodings import Encodings
from ldcvae.metrics.images import frechet_distance
from ldcvae.model import LDCVAE, as_float
from ldcvae.networks import choose_network
from pipeline.store.checkpoint import NewestCheckpoint
from pipeline.compare.cells import Cell, Common, StoredAutoencoder
from pipeline.store.data.shards import load_split
from ldcvae.training.heap import peak_mb, reset_peak
from ldcvae.training.autoencoder import AutoencoderPhase
from pipeline.config.sections import Config, TrainConfig
from pipeline.store.folder import Folder
from pipeline.store.data.splits import encode_split, some_images, training_images
from pipeline.store.model import build_model
from pipeline.train.worker import resolve_auto
from ldcvae.training.world import World

__all__ = ["AUTOENCODER_LABELS", "decoder_passes", "train_autoencoder", "train_settings"]

AUTOENCODER_LABELS = {
    "vae": "VAE",
    "beta_vae": "beta-VAE",
    "wae_mmd": "WAE-MMD",
    "rae_l2": "RAE-L2",
    "vampprior": "VampPrior VAE",
    "ldc_elbo": "LDC-VAE, ELBO encoder",
    "ldc_svgd": "LDC-VAE, SVGD encoder",
}
_POINT = -16.0  # log variance of a deterministic encoder's posterior: the least that a posterior may have


def decoder_passes(name: str, config: TrainConfig) -> int:
    """Latents that are decoded per image and step.

    Example:
        >>> decoder_passes("vae", TrainConfig()), decoder_passes("ldc_svgd", TrainConfig(particles=4))
        (1, 4)
    """
    return config.particles if name.startswith("ldc_") else 1


def train_settings(name: str, setting: float | None, config: TrainConfig) -> TrainConfig:
    """The `train` section of an autoencoder.

    Example:
        >>> config = TrainConfig(inverse_temperature=40.0)
        >>> [train_settings(name, 4.0, config).inverse_temperature for name in ("beta_vae", "ldc_elbo")]
        [10.0, 160.0]
    """
    changed: dict[str, Any] = {
        "objective": "svgd" if name == "ldc_svgd" else "elbo",
        "particles": decoder_passes(name, config),
    }
    if not name.startswith("ldc_"):
        changed["consistency"] = 0.0  # the learnt energy in the encoder's target is LDC-VAE's own
    if name == "beta_vae":
        assert setting is not None
        changed["inverse_temperature"] = config.inverse_temperature / setting
    if name.startswith("ldc_"):
        assert setting is not None
        changed["inverse_temperature"] = config.inverse_temperature * setting
    return TrainConfig.model_validate(config.model_dump() | changed)


def _objective(
    name: str, setting: float | None, config: Config, job: dict[str, Any], images: Any
) -> nn.Module | None:
    """The step of an autoencoder that is not LDC-VAE's own."""
    temperature, likelihood = config.train.inverse_temperature, config.model.likelihood
    if name == "wae_mmd":
        assert setting is not None
        return WassersteinObjective(temperature, setting, likelihood)
    if name == "rae_l2":
        assert setting is not None
        return RegularisedObjective(temperature, setting, likelihood)
    if name == "vampprior":
        assert setting is not None
        return VampObjective(
            temperature, as_float(some_images(images, int(setting), job["seed"], "pseudo-inputs")), likelihood
        )
    return None


@torch.no_grad()
def _encode(model: LDCVAE, run: Folder, train: Any, point: bool) -> dict[str, Encodings]:
    parts = {"train": encode_split(model, train)}
    parts |= {split: model.encodings(load_split(run, split).pixels) for split in ("validation", "test")}
    if point:
        parts = {name: Encodings(part.mean, torch.full_like(part.mean, _POINT)) for name, part in parts.items()}
    return parts


@torch.no_grad()
def _reconstruction(model: LDCVAE, run: Folder, common: Common, device: torch.device) -> dict[str, float]:
    pixels = load_split(run, "test").pixels
    extractor, errors, features = common.extractor.to(device), 0.0, []
    for part in pixels.split(1000):
        images = as_float(part.to(device))
        decoded = model.reconstruct(images)
        errors += float((decoded - images).square().sum())
        features.append(extractor(decoded).cpu())
    return {"mse": errors / pixels.numel(), "fd": frechet_distance(torch.cat(features), common.test)}


def train_autoencoder(job: dict[str, Any], cell: Cell, common: Common) -> dict[str, Any]:
    """Train the autoencoder of a cell, from its last checkpoint where there is one, and write the cell.

    Args:
        job: `config` (dict), `run` (URL of the run's folder).
        cell: to compute.
        common: what all cells share.

    Returns:
        The cell's record: `settings`, `figures` (mse and fd of reconstructed test images, seconds of training,
        peak_mb), `files`.

    Raises:
        NonFiniteLossError: naming term and step.
    """
    config, run = Config.model_validate(job["config"]), Folder(job["run"])
    name, setting, seed = cell.job["name"], cell.job["setting"], cell.job["seed"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(device=device)
    reset_peak()
    train, validation = training_images(run, config.train.memory_mb), load_split(run, "validation").pixels
    torch.manual_seed(seed)  # initial weights; everything later is keyed by step
    model = build_model(config, common.shape).to(device)
    settings = resolve_auto(
        train_settings(name, setting, config.train), device, choose_network(config.model.network, common.shape)
    )
    objective = _objective(name, setting, config, cell.job, train)
    if objective is not None:
        objective.to(device)
    phase = AutoencoderPhase(model, train, validation, settings, world, seed, objective)
    kept = NewestCheckpoint(run / f"compare/checkpoints/{cell.key}")
    if (state := kept.load()) is not None:
        phase.network.load_state_dict(state["network"])
        phase.load(state["phase"])
    for epoch in phase.epochs():
        if epoch % settings.checkpoint_epochs == 0 and phase.step < phase.total:
            kept.save({"network": phase.network.state_dict(), "phase": phase.state()}, epoch)
    phase.adopt_average()
    peak = peak_mb()
    encodings = _encode(model, run, train, getattr(objective, "deterministic", False))
    model.set_whitening(encodings["train"].whitening())
    prior = None
    if isinstance(objective, VampObjective):
        with torch.no_grad():
            prior = Encodings(*objective.prior(model.encoder))
    stored = StoredAutoencoder(model, encodings, prior)
    figures = _reconstruction(model.eval(), run, common, device) | {"seconds": phase.seconds, "peak_mb": peak}
    record = {
        "cell": cell.job,
        "figures": figures,
        "history": phase.history,
        "files": stored.write(run, cell),
        "finished": time.time(),
    }
    run.write_json(cell.record, record)
    run.remove(f"compare/checkpoints/{cell.key}")
    return record
