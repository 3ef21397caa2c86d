"""Judge the model: reconstruction, and images from latents of every generator, by several figures.

Writes `evaluation/metrics.json`; docs/metrics.md describes it. Every generator is drawn `evaluate.draws` times;
means and spreads are over those draws.
"""

from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["check", "run"]


def check(run: Run) -> None:
    """Refuse what could not be judged, once the images are there.

    Raises:
        ConfigError: if there are too few of them.
    """
    from pipeline.evaluate import stage

    stage.check(run)


def run(run: Run, force: bool = False) -> Manifest:
    """Evaluate the run's model on `evaluate.split`, unless that is done.

    Returns:
        The manifest; the figures are in `evaluation/metrics.json`.

    Raises:
        PipelineError: if an earlier stage has not finished.
        ConfigError: if the extractor does not fit the data.
    """
    from pipeline.evaluate import stage  # here, so that --help and a wrong configuration wait for no library

    return stage.run(run, force)
