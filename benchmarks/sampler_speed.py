"""The sampler net against annealed Langevin at equal latent MMD²: latents per second.

Trains a model on digits (a minute; `make bench` a shorter one), then finds the fewest Langevin steps whose MMD² to
held-out encoder draws is within one standard error of the sampler net's, or takes the best it reaches. Prints the
ratio of speeds.

    python benchmarks/sampler_speed.py [key=value …]
"""

import statistics
import sys
import tempfile

import torch
from bare import report

from ldcvae.metrics.latents import median_bandwidths, mmd2
from ldcvae.training.world import keyed_generator
from pipeline import prepare, train
from pipeline.config.load import load_config, override
from pipeline.judge.generators import fitted, timed_draw
from pipeline.store.data.shards import load_split
from pipeline.store.model import load_model
from pipeline.store.run import open_run

DRAWS, REPEATS = 2000, 5
STEPS = (12, 24, 48, 120, 240, 480)


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as storage:
        config = load_config(None, [f"storage={storage}", *arguments])
        run = open_run(config)
        prepare.run(run)
        train.run(run)
        model = load_model(run)
        encodings = model.encodings(load_split(run, "train").pixels)
        held_out = model.encodings(load_split(run, "test").pixels)

    def generator(*key: int | str) -> torch.Generator:
        return keyed_generator("cpu", *key)

    truths = [model.whitening.whiten(held_out.draw(DRAWS, generator("truth", k))) for k in range(REPEATS)]
    bandwidths = median_bandwidths(truths[0])

    def judge(name: str, steps: int = 120) -> tuple[float, float, float]:
        """Mean MMD², its standard error and latents per second of a generator."""
        asked = override(config, {"evaluate.generators": [name], "evaluate.langevin_steps": steps})
        noise = generator("fits")
        ((_, draw),) = fitted(asked, model, encodings, None, lambda purpose: noise)
        timed_draw(draw, 200, generator("warm-up"))
        values, rates = [], []
        for repeat, truth in enumerate(truths):
            latents, rate = timed_draw(draw, DRAWS, generator(name, repeat))
            values.append(mmd2(model.whitening.whiten(latents), truth, bandwidths))
            rates.append(rate)
        return statistics.fmean(values), statistics.stdev(values) / REPEATS**0.5, statistics.median(rates)

    target, error, fast = judge("sampler")
    print(f"sampler net: MMD² {target * 1e3:.2f}e-3 ± {error * 1e3:.2f}e-3, {fast:,.0f} latents/s")
    reached = None
    for steps in STEPS:
        value, _, slow = judge("langevin", steps)
        print(f"langevin, {steps} steps: MMD² {value * 1e3:.2f}e-3, {slow:,.0f} latents/s")
        if reached is None and value <= target + error:
            reached = (steps, slow)
    if reached is None:
        print(f"Langevin does not reach the sampler's MMD² within {STEPS[-1]} steps")
    else:
        report("sampler net / Langevin, latents/s at equal MMD²", fast / reached[1], "higher")
        print(f"to the same MMD² ({reached[0]} steps): the sampler net is {fast / reached[1]:,.0f} times faster")


if __name__ == "__main__":
    main(sys.argv[1:])
