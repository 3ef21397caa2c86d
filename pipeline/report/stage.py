"""What a page depends on, and whether there is one; `pipeline.report.make` writes it."""

from ldcvae.registry import lazy
from pipeline.store.manifest import Manifest, say
from pipeline.store.run import Run

__all__ = ["SHOWN", "run"]

FORMAT = 3  # of the page and its pictures; CONTRIBUTING.md says when to raise it

SHOWN = ("data", "train", "samples", "evaluation")  # stages that every page is made of

_work = lazy("pipeline.report.make:work")


def run(run: Run, force: bool = False) -> Manifest:
    """See `pipeline.report.run`."""
    manifests = {stage: run.made(stage) for stage in SHOWN}
    manifests |= {stage: run.manifest(stage) for stage in ("tune", "compare") if run.has(stage)}
    # The page shows the whole configuration, so all of it counts.
    depends_on = {"config": run.config.model_dump(mode="json")} | {key: m.digest for key, m in manifests.items()}
    manifest = run.stage("report", depends_on, lambda _: _work(run, manifests), force, FORMAT)
    say(f"report: {run.folder.url}/report/index.html")
    return manifest
