"""What a data set depends on, and whether it is there; `pipeline.prepare.write` writes it."""

from ldcvae.registry import lazy
from pipeline.prepare.sources import find_source
from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]

FORMAT = 1  # of shards, splits and what the manifest says of them; CONTRIBUTING.md says when to raise it

_work = lazy("pipeline.prepare.write:work")


def run(run: Run, force: bool = False) -> Manifest:
    """See `pipeline.prepare.run`."""
    source = find_source(run.config)
    depends_on = {
        "data": run.config.data.model_dump(mode="json"),
        "seed": run.config.seed,
        "source": source.description,
    }
    return run.stage("data", depends_on, lambda _: _work(run, source), force, FORMAT)
