"""A step of phase `decoder` against a step of the same decoder with squared error alone: how much longer it takes.

Both take their batches from the same loop, on the same images and encodings, in turns in one process, so that a busy
machine slows both. The ratio is to stay at 2.5 or below for the networks of configs/fashion_mnist.yaml
with 16 latent dimensions in place of 64.

    OMP_NUM_THREADS=1 python benchmarks/decoder_step.py [decoder.judged=… any key=value]
"""

import statistics
import sys

import torch
from bare import report

from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.world import World
from pipeline.config.load import load_config
from pipeline.store.model import build_model

IMAGES, ROUNDS, GOAL = 1024, 15, 2.5
OVERRIDES = [
    "decoder.epochs=1000", "train.batch_size=128", "sampler.base_components=10",
    "model.network=conv", "model.latent_dim=16", "model.width=32", "model.depth=1",
]  # fmt: skip


def main(arguments: list[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(None, OVERRIDES + arguments)
    pixels = torch.randint(0, 256, (IMAGES, 1, 28, 28), dtype=torch.uint8).to(device)
    keep_freed_memory()  # as training does

    def phase(**changes: float) -> DecoderPhase:
        model = build_model(config, (1, 28, 28)).to(device).eval()
        return DecoderPhase(
            model,
            pixels,
            encode_split(model, pixels),
            pixels[:128],
            config.decoder.model_copy(update=changes),
            World(device=device),
            0,
            autoencoder=config.train,
            sampler=config.sampler,
        )

    phases = {"squared error alone": phase(adversarial=0.0), "decoder": phase()}
    epochs = {name: one.epochs() for name, one in phases.items()}
    times: dict[str, list[float]] = {name: [] for name in phases}
    for round_ in range(ROUNDS + 1):
        for name, one in phases.items():
            next(epochs[name])
            if round_:  # the first warms up
                times[name].append(1e3 * one.batch / one.history[-1]["images_per_s"])
    plain, ours = (statistics.median(series) for series in times.values())
    least = min(times["decoder"]) / min(times["squared error alone"])
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    report("step of phase decoder / squared error alone", ratio, "lower", GOAL)
    print(
        f"{device.type}, {torch.get_num_threads()} threads, batch {phases['decoder'].batch}, judged "
        f"{config.decoder.judged:g}, width {config.decoder.width}: squared error alone {plain:.1f} ms a step, phase "
        f"decoder {ours:.1f} ms, ratio {ratio:.2f} (of the least times {least:.2f}); "
        f"goal {GOAL}: {'met' if ratio <= GOAL else 'NOT met'}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
