"""What a training depends on, and whether there is one; `pipeline.train.fit` does it."""

from functools import partial
from typing import Any

from ldcvae.registry import lazy
from pipeline.config.sections import Config
from pipeline.store.manifest import Manifest
from pipeline.store.run import Run
from pipeline.store.weights import decoder_parts

__all__ = ["run"]

FORMAT = 8  # of weights and history, unfinished ones too; CONTRIBUTING.md says when to raise it

_check, _work = lazy("pipeline.train.fit:check"), lazy("pipeline.train.fit:work")


def _depends_on(config: Config, data: str) -> dict[str, Any]:
    return {
        "data": data,
        "seed": config.seed,
        "model": config.model.kept_under(),
        "train": config.train.kept_under(config.train.operational),
        "sampler": config.sampler.kept_under({"checkpoint_steps"}),
        **(decoder_parts(config) if config.decoder.epochs else {}),
    }


def run(run: Run, force: bool = False) -> Manifest:
    """See `pipeline.train.run`."""
    depends_on = _depends_on(run.config, run.data.digest)
    return run.stage("train", depends_on, partial(_work, run, force), force, FORMAT, check=partial(_check, run))
