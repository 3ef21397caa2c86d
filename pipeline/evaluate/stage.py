"""What an evaluation depends on, and whether there is one; `pipeline.evaluate.judge` makes it."""

from functools import partial
from typing import Any

from ldcvae.registry import lazy
from ldcvae.variants import GENERATORS
from pipeline.config.load import read_keys
from pipeline.judge.doubts import require_neighbours
from pipeline.store.manifest import Manifest
from pipeline.store.run import Run
from pipeline.store.weights import FILES, judge_parts

__all__ = ["check", "run"]

FORMAT = 8  # of metrics.json and the figures in it; CONTRIBUTING.md says when to raise it

_work = lazy("pipeline.evaluate.judge:work")


def run(run: Run, force: bool = False) -> Manifest:
    """See `pipeline.evaluate.run`."""
    data, trained = run.made("data"), run.made("train")
    depends_on: dict[str, Any] = {
        "data": data.digest,
        "train": trained.digest,
        "seed": run.config.seed,
        "evaluate": run.config.evaluate.kept_under(FILES),
        "sample": {"temperature": run.config.sample.temperature},
        **judge_parts(run.config),
    }
    # Of other sections only what a learnt generator's fit reads.
    learnt = [record for name in run.config.evaluate.generators if (record := GENERATORS[name]).kind == "learnt"]
    if keys := sorted({key for record in learnt for key in record.reads}):
        depends_on["reads"] = read_keys(run.config, tuple(keys))
    return run.stage("evaluation", depends_on, lambda _: _work(run), force, FORMAT, check=partial(check, run))


def check(run: Run) -> None:
    """What only data and config together show.

    Raises:
        ConfigError: if there are too few images to judge by.
    """
    settings = run.config.evaluate
    judged: dict[str, tuple[str, int]] = {settings.split: ("evaluate.num_images", settings.num_images)}
    require_neighbours(settings.neighbours, run.data.info["counts"], judged)
