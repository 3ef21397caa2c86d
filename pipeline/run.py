"""All stages in order: prepare, train, sample, evaluate, report. A stage whose inputs are unchanged is skipped."""

from pipeline.evaluate import stage as evaluate

from pipeline.prepare import stage as prepare

from pipeline.report import stage as report

from pipeline.sample import stage as sample

from pipeline.train import stage as train
from pipeline.__main__ import main
from pipeline.config.sections import Config
from pipeline.store.manifest import Manifest

__all__ = ["run"]


def run(config: Config, force: bool = False) -> dict[str, Manifest]:
    """Run what is not done yet.

    Args:
        config: the run's configuration.
        force: run every stage again, training from scratch.

    Returns:
        The stages' manifests by module name.
    """
    stages = {"prepare": prepare, "train": train, "sample": sample, "evaluate": evaluate, "report": report}
    return {name: stage.run(config, force) for name, stage in stages.items()}


if __name__ == "__main__":
    main("run")
