"""Images a second of phase 1 against pythae's trainer: the same networks, batch, threads and images, in turns.

Runs in the peers' environment, with the project's folder on PYTHONPATH; nothing is exported first:

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks .venv-peers/bin/python benchmarks/peers/training_speed.py

The networks of configs/fashion_mnist.yaml (conv 32, d = 64) and of configs/digits.yaml (mlp) on images of noise.
pythae's trainer is as it comes, but that it writes nothing; what is timed are its steps of an epoch, by a callback,
without what it does at an epoch's end, and ours as they are, averaged weights included.
"""

import logging
import os
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from bare import advance
from pythae.data.datasets import BaseDataset
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from pythae_models import build
from torch import Tensor, nn

from ldcvae import LDCVAE, AutoencoderSettings, LDCVAEConfig
from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.world import World

CASES = {
    "conv, width 32, 28x28, d = 64, batch 128": ((1, 28, 28), "conv", 32, 1, 64, 128, 40),
    "mlp, width 128, 8x8, d = 8, batch 64": ((1, 8, 8), "mlp", 128, 2, 8, 64, 200),
}
ROUNDS, LAMBDA = 5, 40.0


class Plain(BaseTrainer):
    """pythae's trainer, which keeps nothing on disk."""

    def save_model(self, model: nn.Module, dir_path: str) -> None:
        """Nowhere."""

    save_checkpoint = save_model


class Clock(TrainingCallback):
    """When steps ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_step_end(self, training_config: Any, **kwargs: Any) -> None:
        """Note it."""
        self.times.append(time.perf_counter())


def of_pythae(case: tuple[Any, ...], pixels: Tensor) -> float:
    """Seconds of a step, over an epoch but its first steps."""
    shape, network, width, depth, dim, batch, _ = case
    spec = {"network": network, "shape": list(shape), "latent_dim": dim, "width": width, "depth": depth}
    spec |= {"inverse_temperature": LAMBDA, "settings": {}}
    images, clock = pixels.float() / 255, Clock()
    data = BaseDataset(images, torch.zeros(len(images)))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder, num_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-3, no_cuda=True
        )
        Plain(build("vae", spec, seed=0), data, None, config, callbacks=[clock]).train()
    laps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return statistics.fmean(laps[3:])


def ours(case: tuple[Any, ...], pixels: Tensor) -> float:
    """Seconds of a step."""
    shape, network, width, depth, dim, batch, steps = case
    torch.manual_seed(0)
    model = LDCVAE(LDCVAEConfig(shape, latent_dim=dim, network=network, width=width, depth=depth)).train()
    settings = AutoencoderSettings(
        objective="elbo", particles=1, epochs=1000, batch_size=batch, inverse_temperature=LAMBDA
    )
    phase = AutoencoderPhase(model, pixels, pixels[:batch], settings, World(), 0)
    advance(phase, 3)
    started = time.perf_counter()
    advance(phase, steps)
    return (time.perf_counter() - started) / steps


def main() -> None:
    logging.disable(logging.INFO)
    keep_freed_memory()
    print("| networks | pythae, images/s | phase 1, images/s | ratio |\n|---|---|---|---|")
    for name, case in CASES.items():
        shape, batch, steps = case[0], case[5], case[6]
        pixels = torch.randint(0, 256, (batch * (steps + 4), *shape), dtype=torch.uint8)
        pairs = [(of_pythae(case, pixels), ours(case, pixels)) for _ in range(ROUNDS)]
        theirs, own = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {name} | {batch / theirs:,.0f} | {batch / own:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
