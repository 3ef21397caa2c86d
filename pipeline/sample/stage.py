"""What generated images depend on, and whether they are there; `pipeline.sample.draw` draws them."""

from ldcvae.registry import lazy
from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]

FORMAT = 1  # of images and their files; CONTRIBUTING.md says when to raise it

_work = lazy("pipeline.sample.draw:work")


def run(run: Run, force: bool = False) -> Manifest:
    """See `pipeline.sample.run`."""
    digest, settings = run.made("train").digest, run.config.sample.kept_under({"num_workers"})
    depends_on = {"train": digest, "seed": run.config.seed, "sample": settings}
    return run.stage("samples", depends_on, lambda _: _work(run, digest), force, FORMAT)
