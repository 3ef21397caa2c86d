"""All stages in order: prepare, train, sample, evaluate, report. A stage whose inputs are unchanged is skipped."""

from pipeline import evaluate, prepare, report, sample, train
from pipeline.__main__ import main
from pipeline.remote.connect import connect
from pipeline.remote.hardware import is_local, place_workers
from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]


def run(run: Run, force: bool = False) -> dict[str, Manifest]:
    """Run what is not done yet.

    Args:
        run: what to make.
        force: run every stage again, training from scratch.

    Returns:
        The stages' manifests by module name.

    Raises:
        ConfigError: if a cluster has no room for the training, before any stage works; else as the stages.
    """
    if not is_local(run.config) and (force or not run.has("train")):
        with connect(run.config):
            place_workers(run.config)  # what the cluster has no room for is refused before images are prepared
    manifests = {"prepare": prepare.run(run, force)}
    evaluate.check(run)  # before hours of training
    stages = {"train": train, "sample": sample, "evaluate": evaluate, "report": report}
    return manifests | {name: stage.run(run, force) for name, stage in stages.items()}


if __name__ == "__main__":
    main("run")
