"""Phase 1 against a bare PyTorch loop: images per second with the same networks, batch and data in memory.

Prints the ratio of this project's loop (ELBO, one particle) to the least loop that computes the same update. Both
run in turns in one process, so that a busy machine slows both, with freed memory kept as training keeps it; before
that, the bare loop runs with memory as a plain script has it.

    python benchmarks/training_step.py [data.source=… any key=value]
"""

import dataclasses
import statistics
import sys
import time

import torch
from bare import bare_step, parameters, report

from ldcvae.training.autoencoder import AutoencoderPhase, resolve_auto
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.world import World
from pipeline.config.load import load_config
from pipeline.store.model import build_model

IMAGES, ROUNDS = 4096, 7
OVERRIDES = [
    "train.objective=elbo", "train.particles=1", "train.batch_size=128", "train.epochs=1000",
    "model.network=conv", "model.latent_dim=16", "model.width=32", "model.depth=1",
]  # fmt: skip


def bare_epoch(model, optimizer, pixels, batch, temperature):
    """The least that goes through the images once in a new order."""
    for index in torch.randperm(len(pixels), device=pixels.device).split(batch):
        images = pixels[index].float().div_(255).contiguous(memory_format=torch.channels_last)
        bare_step(model, optimizer, images, temperature)


def main(arguments: list[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(None, OVERRIDES + arguments)
    pixels = torch.randint(0, 256, (IMAGES, 1, 28, 28), dtype=torch.uint8).to(device)
    model = build_model(config, (1, 28, 28)).to(device).to(memory_format=torch.channels_last)
    settings = resolve_auto(config.train, device, model)
    optimizer = torch.optim.AdamW(parameters(model), lr=1e-3, weight_decay=0.0, fused=True)

    def bare_rate() -> float:
        started = time.perf_counter()
        bare_epoch(model, optimizer, pixels, settings.batch_size, config.train.inverse_temperature)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return IMAGES / (time.perf_counter() - started)

    plain = statistics.median([bare_rate() for _ in range(ROUNDS + 1)][1:])  # the first round warms up
    print(f"{device.type}, {torch.get_num_threads()} threads; bare loop as a plain script: {plain:,.0f} images/s")
    keep_freed_memory()  # as training does
    for ema in (settings.ema, 0.0):
        ours = AutoencoderPhase(
            build_model(config, (1, 28, 28)).to(device),
            pixels,
            pixels[:128],
            dataclasses.replace(settings, ema=ema),
            World(device=device),
            0,
        )
        epochs = ours.epochs()
        rates: dict[str, list[float]] = {"ours": [], "bare": []}
        for round_ in range(ROUNDS + 1):
            next(epochs)
            bare = bare_rate()
            if round_:
                rates["ours"].append(ours.history[-1]["images_per_s"])
                rates["bare"].append(bare)
        ours_rate, bare_median = (statistics.median(rates[name]) for name in ("ours", "bare"))
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["bare"], strict=True))
        report(f"phase 1 / bare loop, averaged weights {'on' if ema else 'off'}", ratio, "higher", 0.95)
        print(
            f"averaged weights {'on' if ema else 'off'}: {ours_rate:,.0f} images/s; bare in the same process "
            f"{bare_median:,.0f}, ratio {ratio:.3f}; to the bare loop above {ours_rate / plain:.3f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
