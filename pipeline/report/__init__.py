"""Everything a run has produced, as one self-contained HTML page: pictures, figures of merit, configuration.

Reads the data set, the model, the training log and the evaluation; writes `report/index.html` (no script, nothing
loaded from elsewhere) and its pictures as `report/*.png`.
"""

from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]


def run(run: Run, force: bool = False) -> Manifest:
    """Write the page of a run.

    Args:
        run: what to show.
        force: write it even when nothing it shows has changed.

    Returns:
        The stage's manifest.

    Raises:
        PipelineError: if an earlier stage has not finished, naming the command to run.
    """
    from pipeline.report import stage  # here, so that --help and a wrong configuration wait for no library

    return stage.run(run, force)
