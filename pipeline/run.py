"""All stages in order: prepare, train, sample, evaluate, report. A stage whose inputs are unchanged is skipped."""

from pipeline import evaluate, prepare, report, sample, train
from pipeline.__main__ import main
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
    """
    stages = {"prepare": prepare, "train": train, "sample": sample, "evaluate": evaluate, "report": report}
    return {name: stage.run(run, force) for name, stage in stages.items()}


if __name__ == "__main__":
    main("run")
