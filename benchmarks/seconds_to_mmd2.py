"""How many seconds of training a latent MMD² takes: the sampler net, flow matching, MeanFlow and mixtures.

Each learnt generator is trained anew with ever more steps; its seconds are the whole training's, a base included.
MMD² is of 4,000 draws to as many of held-out posteriors, whitened, the mean of three. On the bundled digits, or on
the autoencoder of a finished run.

    OMP_NUM_THREADS=1 python benchmarks/seconds_to_mmd2.py [--run runs/fashion_mnist] [--steps 100 300 1000]
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from bare import report
from for_docs import opened
from sklearn.datasets import load_digits

from ldcvae import LDCVAE, AutoencoderSettings, Encodings, SamplerSettings, fit
from ldcvae.metrics import mmd2
from ldcvae.rivals.fitting import Budget, Draw, Fitting
from ldcvae.training.encode import encode_split
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.world import keyed_generator
from ldcvae.variants import GENERATORS
from pipeline.store.data.splits import split_images
from pipeline.store.model import load_model

DRAWS, COUNT = 3, 4000


def digits() -> tuple[LDCVAE, Encodings, Encodings, SamplerSettings]:
    """An autoencoder of the bundled digits, encodings to fit to and held-out ones."""
    images = (torch.from_numpy(load_digits().images).float() / 16)[:, None]
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    train, test = images[:1437], images[1437:]
    settings = SamplerSettings(steps=1)
    model = fit(train, autoencoder=AutoencoderSettings(epochs=100), sampler=settings, progress=False)
    return model, model.encodings(train), model.encodings(test), settings


def of_run(path: Path) -> tuple[LDCVAE, Encodings, Encodings, SamplerSettings]:
    """The same of a finished run."""
    run = opened(path)
    model = load_model(run)
    train, test = (encode_split(model, split_images(run, split)) for split in ("train", "test"))
    return model, train, test, run.config.sampler


def distance(draw: Draw, model: LDCVAE, held_out: Encodings) -> float:
    """Mean MMD² of draws to held-out posteriors."""
    found = []
    for number in range(DRAWS):
        noise = [keyed_generator("cpu", number, purpose) for purpose in ("draw", "truth")]
        with torch.no_grad():
            u, truth = (
                model.whitening.whiten(part) for part in (draw(COUNT, noise[0]), held_out.draw(COUNT, noise[1]))
            )
            found.append(float(mmd2(u, truth)))
    return statistics.fmean(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 100, 300, 1000, 3000])
    parser.add_argument("--names", nargs="+", default=["score_difference", "drift", "flow_matching", "mean_flow"])
    parser.add_argument("--components", type=float, nargs="+", default=[10, 30, 100])
    arguments = parser.parse_args()
    keep_freed_memory()
    model, train, held_out, settings = of_run(arguments.run) if arguments.run else digits()
    print(f"the bound: {1e3 * distance(train.draw, model, held_out):.3f}e-3\n")
    print("| generator | seconds | MMD² · 1e3 |\n|---|---|---|")
    curves: dict[str, list[tuple[float, float]]] = {}

    def judge(label: str, name: str, setting: float | None, steps: int) -> None:
        budget = Budget(sampler=replace(settings, steps=steps))
        fitting = Fitting(name, model, train, held_out, setting=setting, budget=budget)
        started = time.perf_counter()
        draw = GENERATORS[name].fit(fitting)
        seconds = time.perf_counter() - started
        found = distance(draw, model, held_out)
        curves.setdefault(name, []).append((seconds, found))
        print(f"| {label} | {seconds:.1f} | {1e3 * found:.3f} |", flush=True)

    for components in arguments.components:
        judge(f"GMM({components:.0f})", "gmm_tuned", components, 1)
    for name in arguments.names:
        for steps in arguments.steps:
            judge(f"{name}, {steps:,} steps", name, None, steps)
    rival = curves.get("flow_matching")
    for name in ("score_difference", "drift"):
        if name in curves and rival:
            # What flow matching has in the end, as early as each has it.
            level = min(found for _, found in rival)
            slow = min(seconds for seconds, found in rival if found <= level)
            fast = [seconds for seconds, found in curves[name] if found <= level]
            if fast:
                print(f"\nflow matching's least MMD²: {name} after {min(fast):.1f} s, flow matching {slow:.1f} s")
                report(f"seconds to flow matching's MMD², flow / {name}", slow / min(fast), "higher")
            else:
                print(f"\n{name} does not reach flow matching's least MMD², {1e3 * level:.3f}e-3")


if __name__ == "__main__":
    main()
