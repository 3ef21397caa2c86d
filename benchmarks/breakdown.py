"""Where the time of a training step goes: a bar for each kind of operation, phase by phase.

The networks and settings of configs/fashion_mnist.yaml on images of noise, twenty steps of each phase under torch's
profiler; time inside each kind of operator, without what it calls. On a GPU it is the GPU's time.

    OMP_NUM_THREADS=1 python benchmarks/breakdown.py [any key=value]
"""

import sys
from collections import Counter
from typing import Any

import torch
from bare import advance
from torch.profiler import ProfilerActivity, profile

from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World
from pipeline.config.load import load_config
from pipeline.store.model import build_model

IMAGES, STEPS, WIDTH = 2048, 20, 40
# The first pattern that an operator's name holds.
KINDS = {
    "convolution, backward": ("convolution_backward", "conv_depthwise2d_backward"),
    "convolution": ("conv", "mkldnn"),
    "optimizer": ("fused_adam", "_foreach", "lerp"),
    "matrix products": ("mm", "bmm", "matmul", "linear", "dot"),
    "exponentials": ("exp", "softmax", "sigmoid", "silu", "log"),
    "random numbers": ("normal", "rand", "multinomial", "bernoulli"),
    "norm": ("norm",),
    "copies and indexing": ("copy", "index", "cat", "gather", "clone", "scatter", "empty", "to", "fill", "zero"),
}


def kind_of(name: str) -> str:
    """The kind of an operator.

    Example:
        >>> kind_of("aten::convolution_backward"), kind_of("aten::add_")
        ('convolution, backward', 'sums, products and the rest')
    """
    plain = name.rpartition("::")[2].lower().replace("expand", "")  # which is no exponential
    for kind, patterns in KINDS.items():
        if any(pattern in plain for pattern in patterns):
            return kind
    return "sums, products and the rest"


def shares(phase: Any) -> tuple[Counter[str], float]:
    """Microseconds of each kind in `STEPS` steps, and milliseconds of a step."""
    advance(phase, 3)
    cuda = phase.world.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        advance(phase, STEPS)
    totals: Counter[str] = Counter()
    for event in found.key_averages():
        totals[kind_of(event.key)] += event.self_device_time_total if cuda else event.self_cpu_time_total
    return totals, totals.total() / STEPS / 1e3


def main(arguments: list[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    overrides = ["train.epochs=1000", "decoder.epochs=1000", "sampler.base_components=20", "sampler.steps=1000"]
    config = load_config("configs/fashion_mnist.yaml", [*overrides, *arguments])
    pixels = torch.randint(0, 256, (IMAGES, 1, 28, 28), dtype=torch.uint8)
    model, world = build_model(config, (1, 28, 28)).to(device), World(device=device)
    print(f"{device.type}, {torch.get_num_threads()} threads, batch {config.train.batch_size}")
    first = AutoencoderPhase(model.train(), pixels, pixels[:128], config.train, world, 0)
    bars("autoencoder", *shares(first))
    encodings = encode_split(model.eval(), pixels, world)
    second = DecoderPhase(
        model, pixels, encodings, pixels[:128], config.decoder, world, 0, autoencoder=config.train,
        sampler=config.sampler,
    )  # fmt: skip
    bars("decoder", *shares(second))
    third = SamplerPhase(model.eval(), encodings, encodings, config.sampler, world, 0)
    bars(f"sampler, {config.sampler.direction}, n = {config.sampler.particles:,}", *shares(third))


def bars(name: str, totals: Counter[str], milliseconds: float) -> None:
    print(f"\n{name}: {milliseconds:.0f} ms a step")
    for kind, time in totals.most_common():
        share = time / totals.total()
        if share > 0.005:
            print(f"  {kind:28s} {100 * share:4.0f} %  {'█' * round(WIDTH * share)}")


if __name__ == "__main__":
    main(sys.argv[1:])
