"""How much a search saves by sharing one autoencoder: a whole trial against one that trains the sampler only.

    python benchmarks/tune_sharing.py [key=value …]

Both are trials as `pipeline.tune` runs them, on one thread, on the bundled digits. What sharing saves is phase 1:
little with the small perceptrons of `configs/digits.yaml`, most of a trial with convolutional networks, the default
here.
"""

import sys
import tempfile
import time

from ldcvae.training.world import World
from pipeline.config.load import load_config
from pipeline.judge.extractors import build_extractor
from pipeline.prepare import stage as prepare
from pipeline.store.data.shards import load_split
from pipeline.store.manifest import run_folder
from pipeline.store.model import build_model
from pipeline.tune.trial import Common, Shared, run_trial

DEFAULTS = ["model.network=conv", "model.width=32", "sampler.particles=256", "sampler.steps=1000"]


def main() -> None:
    with tempfile.TemporaryDirectory() as storage:
        config = load_config(None, [*DEFAULTS, *sys.argv[1:], f"storage={storage}"])
        data = prepare.run(config)
        run = run_folder(config)
        shape = tuple(data.info["shape"])
        train, validation = (load_split(run, split).pixels for split in ("train", "validation"))
        extractor = build_extractor(run, config.evaluate, config.seed, data)
        model = build_model(config, shape)
        weights = {k: v for k, v in model.state_dict().items() if k.startswith(("encoder.", "decoder."))}
        # What the autoencoder has learnt changes nothing of what a trial costs.
        shared = Shared(weights, model.encodings(train), model.encodings(validation), 0.0)
        seconds = {}
        for number, (name, part) in enumerate((("sampler only", shared), ("both phases", None))):
            job = {"config": config.model_dump(mode="json"), "run": run.url, "study": "bench", "number": number}
            reports: list[dict] = []
            started = time.perf_counter()
            common = Common(shape, extractor, extractor(validation), part)
            run_trial(job | {"threads": 1}, common, World(), reports.append)
            seconds[name] = time.perf_counter() - started
            assert reports[-1]["finished"], reports[-1]["failure"]
            print(f"{name}: {seconds[name]:.1f} s", flush=True)
    ratio = seconds["both phases"] / seconds["sampler only"]
    print(f"a trial that shares the autoencoder is {ratio:.1f} times cheaper")


if __name__ == "__main__":
    main()
