"""Compare autoencoders and latent generators on one data set: same networks, budget, optimizer and seeds.

Reads the data set, which is made first if it is missing. Every knob is chosen on validation images, every figure is
of test images; docs/compare.md tells how. Writes `compare/results.json`, the table `compare/results.md` and the page
`compare/index.html`. Each training and each generator is a Ray task whose result is kept: killed at any moment, the
same command goes on, and a row or seed that is added costs no more than itself.
"""

from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]


def run(run: Run, force: bool = False) -> Manifest:
    """Compare what `compare.autoencoders` and `compare.generators` name, unless that is done.

    Args:
        run: whose data set and settings.
        force: compute every cell anew.

    Returns:
        The stage's manifest; `info` holds the goals.

    Raises:
        ConfigError: if a generator's package is missing or a cell does not fit the cluster.
        PipelineError: if no cell could be computed, with the reasons.
    """
    from pipeline.compare import stage  # here, so that --help and a wrong configuration wait for no library

    return stage.run(run, force)
