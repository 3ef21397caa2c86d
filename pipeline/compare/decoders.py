"""Phase `decoder` on a trained autoencoder of a comparison: the same for all of them, on frozen encoders."""

from typing import Any

from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.heap import peak_mb, reset_peak
from ldcvae.training.world import World
from pipeline.compare.autoencoders import train_settings, write_trained
from pipeline.compare.cells import Cell, read_autoencoder, read_record
from pipeline.judge.figures import Reference
from pipeline.remote.device import process_device
from pipeline.store.checkpoint import NewestCheckpoint
from pipeline.store.data.splits import split_images
from pipeline.store.model import perceptual_features
from pipeline.store.run import Run

__all__ = ["train_decoder"]


def train_decoder(run: Run, cell: Cell, reference: Reference) -> dict[str, Any]:
    """Train the decoder of a cell on, from its last checkpoint where there is one, and write the cell.

    Args:
        run: of the comparison.
        cell: to compute; its parent is the autoencoder without the phase.
        reference: what all cells are judged by.

    Returns:
        The cell's record, as that of an autoencoder; its seconds are those of both trainings.

    Raises:
        NonFiniteLossError: naming term and step.
    """
    config, folder = run.config, run.folder
    device = process_device(config)
    reset_peak()
    stored = read_autoencoder(run, cell, reference.shape).to(device)
    train, validation = (split_images(run, split) for split in ("train", "validation"))
    settings = train_settings(cell.job["name"], cell.job["setting"], config.train)
    kept = NewestCheckpoint(folder / f"compare/checkpoints/{cell.key}")
    if (state := kept.load()) is not None:
        stored.model.load_state_dict(state["model"])
    phase = DecoderPhase(
        stored.model,
        train,
        stored.encodings["train"],
        validation,
        config.decoder,
        World(device=device),
        cell.job["seed"],
        autoencoder=settings,
        sampler=config.sampler,
        features=perceptual_features(config, reference.shape, device),
        state=state["phase"] if state is not None else None,
    )
    for epoch in phase.epochs():
        if epoch % settings.checkpoint_epochs == 0 and phase.step < phase.total:
            kept.save({"model": stored.model.state_dict(), "phase": phase.state()}, epoch)
    phase.adopt_average()
    stored.model.eval()
    peak = peak_mb()
    before = read_record(folder, f"compare/cells/{cell.job['parent']}/record.json")["figures"]["seconds"]
    cost = {"seconds": before + phase.seconds, "peak_mb": peak}
    return write_trained(run, cell, reference, split_images(run, "test"), stored, phase, cost)
