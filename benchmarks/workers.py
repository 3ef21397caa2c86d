"""What more workers bring: images/s and particles/s of 1, 2, 4, 8 workers, modelled and checked at 1 and 2.

A step of W workers is modelled as its computation, measured in one process on the part that each of them has, plus
what they tell each other, as rings do it: gradients and particles in 2(W - 1)/W and (W - 1)/W of their bytes at a
bandwidth, each of 2(W - 1) messages with a latency, both measured between two processes here. The step of two is
measured too, and set beside the model. Then the same formula for GPUs, one of which `gpu.py` has measured, with every
assumption on a line of its own.

    OMP_NUM_THREADS=1 python benchmarks/workers.py [key=value …]
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bare import advance, report, timed
from torch.nn.parallel import DistributedDataParallel

from ldcvae.encodings import Encodings
from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.store.model import build_model

SHAPE = (1, 28, 28)
OVERRIDES = ["train.epochs=1000", "sampler.base_components=20", "sampler.steps=100000", "sampler.particles=4096"]
SIZES = (1, 2, 4, 8)
SECONDS, IMAGES = 4.0, 4096
SMALL, LARGE = 2**8, 2**22  # numbers of a message by which latency and bandwidth are told apart


class Link(NamedTuple):
    """What messages between workers cost."""

    latency: float  # s
    bandwidth: float  # bytes/s

    def all_reduce(self, size: int, workers: int) -> float:
        """Seconds to sum `size` bytes over workers, by a ring (Patarasu & Yuan 2009).

        Example:
            >>> Link(0.0, 1e9).all_reduce(10**9, 2), Link(1e-3, 1e9).all_reduce(0, 4)
            (1.0, 0.006)
        """
        return 2 * (workers - 1) * (self.latency + size / workers / self.bandwidth)

    def all_gather(self, size: int, workers: int) -> float:
        """Seconds until all have the `size` bytes that they have in equal parts."""
        return (workers - 1) * (self.latency + size / workers / self.bandwidth)


class Load(NamedTuple):
    """A phase's step: what each worker computes, and what all of them tell each other."""

    name: str
    unit: str
    items: int  # of a step, over all workers
    seconds: float  # of a worker's computation
    gradients: int  # bytes
    particles: int = 0  # bytes

    def rate(self, link: Link, workers: int) -> float:
        """Items a second."""
        told = link.all_reduce(self.gradients, workers) + link.all_gather(self.particles, workers)
        return self.items / (self.seconds + told)


class Part(World):
    """One of `size` ranks without the others: gathers copies of its own, so that computation is all there is."""

    def share(self, tensors: Any) -> None:
        """Nobody else is there."""

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """As many rows as all of them would have."""
        return torch.cat([part.detach()] * self.size)


def phases(config: Config, world: World) -> dict[str, Any]:
    """Phases 1 and 2 on images and encodings of noise."""
    pixels = torch.randint(0, 256, (IMAGES, *SHAPE), dtype=torch.uint8)
    torch.manual_seed(0)
    model = build_model(config, SHAPE)
    size = (IMAGES, config.model.latent_dim)
    encodings = Encodings(torch.randn(size), torch.full(size, -2.0))
    return {
        "autoencoder": lambda: AutoencoderPhase(model.train(), pixels, pixels[:128], config.train, world, 0),
        "sampler": lambda: SamplerPhase(model.eval(), encodings, encodings, config.sampler, world, 0),
    }


def step_seconds(config: Config, world: World) -> dict[str, float]:
    """Of each phase."""
    found = {}
    for name, build in phases(config, world).items():
        phase = build()
        found[name] = timed(lambda phase=phase: advance(phase, 1), world.device, SECONDS)
    return found


def scaled(config: Config, workers: int) -> Config:
    """A batch of so many workers' parts: images grow with the workers, particles stay what they are."""
    train = config.train.model_copy(update={"batch_size": config.train.batch_size * workers})
    return config.model_copy(update={"train": train})


def rank_of_two(rank: int, port: int, overrides: list[str], found: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", rank=rank, world_size=2)
    cpu = torch.device("cpu")
    seconds = {}
    for size in (SMALL, LARGE):
        message = torch.zeros(size)
        for _ in range(3):
            dist.all_reduce(message)
        dist.barrier()
        seconds[size] = timed_calls(lambda message=message: dist.all_reduce(message))
    config = scaled(load_config("configs/fashion_mnist.yaml", overrides), 2)
    steps = {}
    for name, build in phases(config, World(rank, 2, cpu, DistributedDataParallel)).items():
        phase = build()
        advance(phase, 3)
        dist.barrier()
        steps[name] = timed_calls(lambda phase=phase: advance(phase, 1))
    if rank == 0:
        found["link"], found["steps"] = seconds, steps
    dist.barrier()
    dist.destroy_process_group()


def timed_calls(work: Callable[[], Any], calls: int = 30) -> float:
    """Mean seconds of so many calls: both ranks have to make the same number."""
    started = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - started) / calls


def measure_two(overrides: list[str]) -> tuple[Link, dict[str, float]]:
    """The link between two processes of this machine, and their steps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(rank_of_two, (port, overrides, found), nprocs=2)
        small, large = found["link"][SMALL], found["link"][LARGE]
        steps = dict(found["steps"])
    return Link(small / 2, (LARGE - SMALL) * 4 / max(large - small, 1e-9)), steps


def gradient_bytes(*networks: torch.nn.Module) -> int:
    """Of float32 gradients of all weights."""
    return 4 * sum(weight.numel() for network in networks for weight in network.parameters())


def loads(config: Config, workers: int) -> list[Load]:
    """Both phases as a worker of so many sees them, its computation measured alone."""
    seconds = step_seconds(scaled(config, workers), Part(0, workers))
    model = build_model(config, SHAPE)
    autoencoder, sampler = gradient_bytes(model.encoder, model.decoder), gradient_bytes(model.sampler)
    n = config.sampler.particles
    return [
        Load("phase 1", "images/s", workers * config.train.batch_size, seconds["autoencoder"], autoencoder),
        Load("phase 2", "particles/s", n, seconds["sampler"], sampler, 4 * n * config.model.latent_dim),
    ]


def main(overrides: list[str]) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    overrides = [*OVERRIDES, *overrides]
    config = load_config("configs/fashion_mnist.yaml", overrides)
    link, two = measure_two(overrides)
    print(
        f"gloo between two processes here: {1e6 * link.latency:.0f} µs a message, {link.bandwidth / 1e9:.2f} GB/s\n"
    )
    print("| phase | workers | model | against one | measured |\n|---|---|---|---|---|")
    alone: dict[str, float] = {}
    for workers in SIZES:
        for load, name in zip(loads(config, workers), ("autoencoder", "sampler"), strict=True):
            rate = load.rate(link, workers)
            alone.setdefault(name, rate)
            measured = f"{load.items / two[name]:,.0f}" if workers == 2 else "–"
            if workers == 2:
                gain = load.items / two[name] / alone[name]
                report(f"two workers / one, {load.name}", gain, "higher", 1.7 if name == "sampler" else None)
                measured += f" ({gain:.2f} times one)"
            print(
                f"| {load.name}, {load.unit} | {workers} | {rate:,.0f} | {rate / alone[name]:.2f} | {measured} |",
                flush=True,
            )
    print("\nWorkers beyond the cores of this machine are as if each had a core of its own.")
    by_calculation()


MEASURED = Path(__file__).with_name("gpu-h200.json")  # by gpu.py, one GPU
ASSUMED = {
    "bytes/s within a node (NVLink)": 300e9,
    "bytes/s between nodes (a 400 Gbit/s card a GPU)": 40e9,
    "latency of a message, s": 20e-6,
}
CALCULATED = (
    ("cifar10", 32, 50_000, "32x32 colour, resnet 64"),
    ("celeba64", 64, 162_770, "64x64 colour, resnet 64"),
)


def by_calculation() -> None:
    """Phase 1 of larger configurations on 1, 8 and 64 GPUs, from its speed on one."""
    found = json.loads(MEASURED.read_text())
    speeds = {row["network"]: row for row in found["networks"]}
    print(f"\nOne GPU as measured ({found['device']}), more by calculation. Assumed:")
    for what, value in ASSUMED.items():
        print(f"- {what}: {value:g}")
    print("\n| configuration | images a GPU | MB of gradients | GPUs | images/s | of perfect | an epoch |")
    print("|---|---|---|---|---|---|---|")
    inside, between, latency = ASSUMED.values()
    for name, side, images, network in CALCULATED:
        model = build_model(load_config(f"configs/{name}.yaml"), (3, side, side))
        batch, alone = speeds[network]["batch"], speeds[network]["autoencoder_images_per_s"]
        size = gradient_bytes(model.encoder, model.decoder)
        for gpus in (1, 8, 64):
            link = Link(latency, inside if gpus <= 8 else between)
            rate = Load("phase 1", "images/s", batch * gpus, batch / alone, size).rate(link, gpus)
            print(
                f"| {name} | {batch} | {size / 1e6:.1f} | {gpus} | {rate:,.0f} | {rate / gpus / alone:.2f} "
                f"| {images / rate:.1f} s |"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
