"""Train one autoencoder of a comparison: the same networks, batch, epochs and optimizer for all of them."""

import time
from typing import Any

import torch
from torch import Tensor

from ldcvae.batches import batches
from ldcvae.encodings import Encodings
from ldcvae.losses import LEAST_LOG_VARIANCE, as_float
from ldcvae.model import LDCVAE
from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.epochs import EpochPhase
from ldcvae.training.heap import peak_mb, reset_peak
from ldcvae.training.world import World
from ldcvae.variants import AUTOENCODERS
from pipeline.compare.cells import Cell, StoredAutoencoder
from pipeline.config.sections import TrainConfig
from pipeline.judge.figures import Reference
from pipeline.remote.device import process_device
from pipeline.store.checkpoint import NewestCheckpoint
from pipeline.store.data.splits import some_images, split_images
from pipeline.store.data.stream import StreamedSplit
from pipeline.store.model import build_model
from pipeline.store.run import Run

__all__ = ["train_autoencoder", "train_settings", "write_trained"]


def train_settings(name: str, setting: float | None, config: TrainConfig) -> TrainConfig:
    """The `train` section of an autoencoder.

    Example:
        >>> config = TrainConfig(inverse_temperature=40.0)
        >>> [train_settings(name, 4.0, config).inverse_temperature for name in ("beta_vae", "ldc_elbo")]
        [10.0, 160.0]
    """
    record = AUTOENCODERS[name]
    changed: dict[str, Any] = {
        "objective": record.encoder,
        "particles": record.passes(config.particles),
        "inverse_temperature": record.temperature(config.inverse_temperature, setting or 1.0),
    }
    if not record.gibbs:
        changed["consistency"] = 0.0  # the learnt energy in the encoder's target is LDC-VAE's own
    return TrainConfig.model_validate(config.model_dump() | changed)


@torch.no_grad()
def _encode(model: LDCVAE, images: dict[str, Tensor | StreamedSplit], point: bool) -> dict[str, Encodings]:
    parts = {split: encode_split(model, part) for split, part in images.items()}
    if point:
        parts = {
            name: Encodings(part.mean, torch.full_like(part.mean, LEAST_LOG_VARIANCE)) for name, part in parts.items()
        }
    return parts


def train_autoencoder(run: Run, cell: Cell, reference: Reference) -> dict[str, Any]:
    """Train the autoencoder of a cell, from its last checkpoint where there is one, and write the cell.

    Args:
        run: of the comparison.
        cell: to compute.
        reference: what all cells are judged by.

    Returns:
        The cell's record: `settings`, `figures` (mse and fd of reconstructed test images, seconds of training,
        peak_mb), `files`.

    Raises:
        NonFiniteLossError: naming term and step.
    """
    config, folder = run.config, run.folder
    name, setting, seed = cell.job["name"], cell.job["setting"], cell.job["seed"]
    record = AUTOENCODERS[name]
    device = process_device(config)
    reset_peak()
    train, validation = (split_images(run, split) for split in ("train", "validation"))
    torch.manual_seed(seed)  # initial weights; everything later is keyed by step
    model = build_model(config, reference.shape).to(device)
    settings = train_settings(name, setting, config.train)
    objective = None
    if record.objective is not None:

        def some(count: int) -> Tensor:
            return as_float(torch.cat([*batches(some_images(train, count, seed, "pseudo-inputs"), count)]))

        objective = record.objective(settings.inverse_temperature, setting or 1.0, config.model.likelihood, some).to(
            device
        )
    phase = AutoencoderPhase(model, train, validation, settings, World(device=device), seed, objective)
    kept = NewestCheckpoint(folder / f"compare/checkpoints/{cell.key}")
    if (state := kept.load()) is not None:
        phase.network.load_state_dict(state["network"])
        phase.load(state["phase"])
    for epoch in phase.epochs():
        if epoch % settings.checkpoint_epochs == 0 and phase.step < phase.total:
            kept.save({"network": phase.network.state_dict(), "phase": phase.state()}, epoch)
    phase.adopt_average()
    model.eval()
    peak = peak_mb()
    images = {"train": train, "validation": validation, "test": split_images(run, "test")}
    encodings = _encode(model, images, getattr(objective, "deterministic", False))
    model.set_whitening(encodings["train"].whitening())
    prior = None
    if (learnt := getattr(objective, "prior", None)) is not None:
        with torch.no_grad():
            prior = Encodings(*learnt(model.encoder))
    stored = StoredAutoencoder(model, encodings, prior)
    cost = {"seconds": phase.seconds, "peak_mb": peak}
    return write_trained(run, cell, reference, images["test"], stored, phase, cost)


def write_trained(
    run: Run,
    cell: Cell,
    reference: Reference,
    images: Tensor | StreamedSplit,
    stored: StoredAutoencoder,
    phase: EpochPhase,
    cost: dict[str, float | None],
) -> dict[str, Any]:
    """Judge what a cell has trained on test images and write the cell, its record last; its checkpoints go.

    Args:
        run: of the comparison.
        cell: that was computed.
        reference: what all cells are judged by.
        images: test images, that it is judged on.
        stored: what was trained, on the device it was trained on.
        phase: that trained it.
        cost: `seconds` and `peak_mb`.

    Returns:
        The cell's record.
    """
    folder = run.folder
    judge = reference.judge("test", run.config.evaluate.neighbours, stored.model.device)
    figures = judge.reconstruction(stored.model, images)
    found = {
        "cell": cell.job,
        "figures": figures | cost,
        "history": phase.history,
        "files": stored.write(folder, cell),
        "finished": time.time(),
    }
    folder.write_json(cell.record, found)
    folder.remove(f"compare/checkpoints/{cell.key}")
    return found
