"""What a training depends on, and whether there is one; `pipeline.train.fit` does it."""

from functools import partial
from typing import Any

from ldcvae.registry import lazy
from pipeline.config.sections import Config
from pipeline.store.folder import read_file, sha256
from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]

FORMAT = 4  # of weights and history, unfinished ones too; CONTRIBUTING.md says when to raise it

# Keys that change how a run is carried out, not what it computes: a run may be resumed with other values.
_OPERATIONAL = {"num_workers", "device", "checkpoint_epochs", "checkpoint_steps", "keep_checkpoints", "max_failures"}

_check, _work = lazy("pipeline.train.fit:check"), lazy("pipeline.train.fit:work")


def _depends_on(config: Config, data: str) -> dict[str, Any]:
    depends_on: dict[str, Any] = {
        "data": data,
        "seed": config.seed,
        "model": config.model.kept_under(),
        "train": config.train.model_dump(mode="json", exclude=_OPERATIONAL),
        "sampler": config.sampler.model_dump(mode="json", exclude={"checkpoint_steps"}),
    }
    if config.decoder.epochs:
        depends_on["decoder"] = config.decoder.model_dump(mode="json", exclude={"perceptual_weights"})
        if (file := config.decoder.features_file) is not None:  # it may lie elsewhere tomorrow
            depends_on["perceptual_weights"] = sha256(read_file(file, "decoder.perceptual_weights"))
    return depends_on


def run(run: Run, force: bool = False) -> Manifest:
    """See `pipeline.train.run`."""
    depends_on = _depends_on(run.config, run.data.digest)
    return run.stage("train", depends_on, partial(_work, run, force), force, FORMAT, check=partial(_check, run))
