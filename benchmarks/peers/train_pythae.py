"""Train pythae's VAE, WAE-MMD, RAE-L2 and VampPrior on this project's networks and draw images from them.

Runs in the peers' environment (requirements.txt beside this file), with the project's folder on PYTHONPATH, after
export.py has filled FOLDER:

    PYTHONPATH=. .venv-peers/bin/python benchmarks/peers/train_pythae.py FOLDER [--models vae vamp]

Models, losses, trainers and samplers are pythae's; README.md says how the loss weights are mapped. Images are written
as uint8, one file per model, sampler and seed. What is there already, made with the same spec, is left alone.
"""

import argparse
import logging
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from exchange import LABELS, SAMPLERS, cell, digest, read_images, read_json, write_images, write_json
from pythae.data.datasets import BaseDataset
from pythae.models import VAMP
from pythae.samplers import GaussianMixtureSampler, GaussianMixtureSamplerConfig, NormalSampler, VAMPSampler
from pythae.trainers import BaseTrainer, BaseTrainerConfig, CoupledOptimizerTrainer, CoupledOptimizerTrainerConfig
from pythae.trainers.trainer_utils import set_seed
from pythae.trainers.training_callbacks import TrainingCallback
from pythae_models import build
from torch import Tensor, nn
from torch.utils.data import DataLoader


class _Trainer:
    """Whole batches only, as this project trains; the best model is kept in memory, nothing is pickled to disk."""

    def get_train_dataloader(self, train_dataset: BaseDataset) -> DataLoader:
        loader = super().get_train_dataloader(train_dataset)  # type: ignore[misc]
        size = min(loader.batch_size, len(train_dataset))
        return DataLoader(train_dataset, size, shuffle=True, drop_last=True, collate_fn=loader.collate_fn)

    def save_model(self, model: nn.Module, dir_path: str) -> None:
        self.best = model


class PlainTrainer(_Trainer, BaseTrainer):
    """pythae's BaseTrainer."""


class CoupledTrainer(_Trainer, CoupledOptimizerTrainer):
    """pythae's trainer for RAE-L2: the decoder has an optimizer of its own, whose weight decay is the penalty."""


class Schedule(TrainingCallback):
    """Cosine to zero at every step, where pythae's schedulers go by epochs; and the validation losses."""

    def __init__(self, total: int, rate: float):
        self.step, self.total, self.rate = 0, total, rate
        self.losses: list[float] = []
        self.trainer: Any = None

    def on_train_step_end(self, training_config: Any, **kwargs: Any) -> None:
        """Set the next step's rate."""
        self.step += 1
        for name in ("optimizer", "encoder_optimizer", "decoder_optimizer"):
            for group in getattr(self.trainer, name).param_groups if hasattr(self.trainer, name) else ():
                group["lr"] = self.rate * 0.5 * (1.0 + math.cos(math.pi * self.step / self.total))

    def on_log(self, training_config: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Remember the epoch's validation loss, by which pythae chooses the model it keeps."""
        self.losses.append(float(logs["eval_epoch_loss"]))


def train(name: str, spec: dict[str, Any], images: Tensor, validation: Tensor, seed: int) -> tuple[nn.Module, dict]:
    """The model to judge and a record of its training."""
    rate, batch = spec["learning_rate"], spec["batch_size"]
    sets = [BaseDataset(part, torch.zeros(len(part))) for part in (images, validation)]
    schedule = Schedule(spec["epochs"] * (len(images) // min(batch, len(images))), rate)
    model = build(name, spec, seed)
    with tempfile.TemporaryDirectory() as folder:
        common = {"output_dir": folder, "num_epochs": spec["epochs"], "seed": seed}
        common |= {"per_device_train_batch_size": batch, "per_device_eval_batch_size": 1000}
        if name == "rae_l2":
            # Adam's own weight decay adds w·θ to the gradient of the loss over lambda: w/2 |θ|² in that loss. pythae
            # goes backward twice, which doubles the encoder's gradient; Adam minds neither but for its epsilon.
            epsilon = 1e-8 / spec["inverse_temperature"]
            decoder = {"eps": epsilon, "weight_decay": 2.0 * spec["decay"]}
            common |= {"encoder_learning_rate": rate, "encoder_optimizer_params": {"eps": 2.0 * epsilon}}
            config = CoupledOptimizerTrainerConfig(
                decoder_learning_rate=rate, decoder_optimizer_params=decoder, **common
            )
            trainer: Any = CoupledTrainer(model, *sets, config, callbacks=[schedule])
        else:
            trainer = PlainTrainer(
                model, *sets, BaseTrainerConfig(learning_rate=rate, **common), callbacks=[schedule]
            )
        schedule.trainer = trainer
        started = time.perf_counter()
        trainer.train()
    seconds = round(time.perf_counter() - started, 2)
    record = {"seconds": seconds, "steps": schedule.step, "best_epoch": 1 + int(np.argmin(schedule.losses))}
    kept = trainer.best if spec["keep"] == "best" else trainer.model
    return kept.eval(), record | {"validation_losses": schedule.losses}


@torch.no_grad()
def vamp_prior(model: VAMP, count: int) -> Tensor:
    """Images of draws from the prior that VAMP is trained with; see README.md on pythae's own sampler."""
    device = next(model.parameters()).device
    pseudo = model.pseudo_inputs(model.idle_input.to(device)).reshape(-1, *model.input_dim)
    posterior = model.encoder(pseudo)
    chosen = torch.randint(len(pseudo), (count,), device=device)
    mean, log_variance = posterior.embedding[chosen], posterior.log_covariance[chosen]
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    return torch.cat([model.decoder(part)["reconstruction"] for part in latents.split(500)])


def draw(sampler: str, model: nn.Module, images: Tensor, count: int, components: int, seed: int) -> np.ndarray:
    """(count, C, H, W) images in [0, 1] from one of pythae's samplers; its mixture is fitted to `images`."""
    set_seed(seed)
    if sampler == "vamp_prior":
        return vamp_prior(model, count).cpu().numpy()
    if sampler == "gmm":
        source: Any = GaussianMixtureSampler(model, GaussianMixtureSamplerConfig(n_components=components))
        source.fit(images)
    else:
        source = (VAMPSampler if sampler == "vamp" else NormalSampler)(model)
    return source.sample(num_samples=count).cpu().numpy()


@torch.no_grad()
def reconstruct(model: nn.Module, images: Tensor) -> np.ndarray:
    """Decoded means: `predict`, because pythae's `reconstruct` decodes a draw."""
    device = next(model.parameters()).device
    return torch.cat([model.predict(part.to(device)).recon_x.cpu() for part in images.split(1000)]).numpy()


def _current(folder: Path, name: str, seed: int, spec: dict[str, Any]) -> bool:
    path = cell(folder, "trained", name, seed)
    return path.exists() and read_json(path)["spec"] == digest(spec)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what export.py has filled")
    parser.add_argument("--models", nargs="+", choices=LABELS, default=list(LABELS))
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    if not (folder / "spec.json").exists():
        sys.exit(f"error: {folder}/spec.json does not exist: run export.py first, in the project's environment")
    logging.disable(logging.INFO)  # pythae tells of every epoch
    spec = read_json(folder / "spec.json")
    images, validation, held_out = (
        torch.from_numpy(read_images(folder / "images.npz", split)).float() / 255.0
        for split in ("train", "validation", spec["split"])
    )
    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in ("pythae", "torch", "scikit-learn", "numpy")}
    for seed in spec["seeds"]:
        for name in options.models:
            if _current(folder, name, seed, spec):
                continue
            model, record = train(name, spec, images, validation, seed)
            for sampler in SAMPLERS[name]:
                drawn = draw(sampler, model, images, spec["num_images"], spec["components"], seed)
                write_images(cell(folder, "samples", name, sampler, seed), images=drawn)
            write_images(cell(folder, "reconstructions", name, seed), images=reconstruct(model, held_out))
            record |= {"device": str(next(model.parameters()).device), "threads": torch.get_num_threads()}
            write_json(cell(folder, "trained", name, seed), record | {"versions": versions, "spec": digest(spec)})
            print(
                f"{LABELS[name]}, seed {seed}: {record['seconds']:.0f} s, best epoch {record['best_epoch']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
