"""Generate images: `samples/images-*.parquet` and `samples/grid.png`, optionally single PNG files.

Batches are drawn from generators keyed by (seed, batch), so the same seed gives the same images for any number of
workers.
"""

from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]


def run(run: Run, force: bool = False) -> Manifest:
    """Generate `sample.num_images` images, unless they are there.

    Raises:
        PipelineError: if `pipeline.train` has not finished.
    """
    from pipeline.sample import stage  # here, so that --help and a wrong configuration wait for no library

    return stage.run(run, force)
