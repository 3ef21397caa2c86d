"""Compare autoencoders and latent generators on one data set: same networks, budget, optimizer and seeds.

Reads the data set, which is made first if it is missing. Every knob is chosen on validation images, every figure is
of test images; docs/compare.md tells how. Writes `compare/results.json`, the table `compare/results.md` and the page
`compare/index.html`. Each training and each generator is a cell, a Ray task whose result is kept: killed at any
moment, the same command goes on, and a row or seed that is added costs no more than itself. A cell that ran out of
memory or lost its process or node is tried again by the next run, any other that failed with --retry-failed.
"""

from collections.abc import Sequence

from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]


def run(run: Run, force: bool = False, cells: Sequence[str] = (), retry_failed: bool = False) -> Manifest:
    """Compare what `compare.autoencoders` and `compare.generators` name, unless that is done.

    Args:
        run: whose data set and settings.
        force: make the page and the table anew, from the cells that are kept.
        cells: names, globs of names or hashes of cells to delete and compute anew, with the generators that stand on
            an autoencoder among them; `["*"]` for all.
        retry_failed: try the cells again that failed for good, too.

    Returns:
        The stage's manifest; `info` holds the goals, and `failed`: the cells that could not be computed.

    Raises:
        ConfigError: if a generator's package is missing, a cell does not fit the cluster, or `cells` names none.
        PipelineError: if no cell could be computed, with the reasons.
    """
    from pipeline.compare import stage  # here, so that --help and a wrong configuration wait for no library

    return stage.run(run, force, cells, retry_failed)
