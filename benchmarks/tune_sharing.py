"""How much a search saves by sharing one autoencoder: a whole trial against one that trains the sampler only.

    python benchmarks/tune_sharing.py [key=value …]

Both are trials as `pipeline.tune` runs them, on one thread, on the bundled digits. What sharing saves is phase 1:
little with the small perceptrons of `configs/digits.yaml`, most of a trial with convolutional networks, the default
here.
"""

import sys
import tempfile
import time

from bare import report

from ldcvae.training.world import World
from pipeline import prepare
from pipeline.config.load import load_config
from pipeline.judge.figures import make_reference
from pipeline.store.data.shards import load_split
from pipeline.store.model import build_model
from pipeline.store.run import open_run
from pipeline.tune.trial import Shared, Trial, run_trial

DEFAULTS = ["model.network=conv", "model.width=32", "sampler.particles=256", "sampler.steps=1000"]


def main() -> None:
    with tempfile.TemporaryDirectory() as storage:
        run = open_run(load_config(None, [*DEFAULTS, *sys.argv[1:], f"storage={storage}"]))
        prepare.run(run)
        reference = make_reference(run, "validation")
        train, validation = (load_split(run, split).pixels for split in ("train", "validation"))
        model = build_model(run.config, run.shape)
        weights = {k: v for k, v in model.state_dict().items() if k.startswith(("encoder.", "decoder."))}
        # What the autoencoder has learnt changes nothing of what a trial costs.
        shared = Shared(weights, model.encodings(train), model.encodings(validation), 0.0)
        seconds = {}
        for number, (name, part) in enumerate((("sampler only", shared), ("both phases", None))):
            reports: list[dict] = []
            started = time.perf_counter()
            run_trial(Trial(run, "bench", number, 1, reference, part), World(), reports.append)
            seconds[name] = time.perf_counter() - started
            assert reports[-1]["finished"], reports[-1]["failure"]
            print(f"{name}: {seconds[name]:.1f} s", flush=True)
    ratio = seconds["both phases"] / seconds["sampler only"]
    report("whole trial / trial that shares the autoencoder, seconds", ratio, "higher")
    print(f"a trial that shares the autoencoder is {ratio:.1f} times cheaper")


if __name__ == "__main__":
    main()
