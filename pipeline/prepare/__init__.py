"""Prepare: raw images to Parquet shards of uint8 pixels in `<run>/data/`, cut into train, validation and test.

Sources (data.source): digits, torchvision, idx, folder, parquet. The splits a source has are kept; what is missing is
cut from the training images with the seed. Reads data.* and seed only.
"""

from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]


def run(run: Run, force: bool = False) -> Manifest:
    """Prepare the images unless that is done for the same source, `data.*` and seed.

    Args:
        run: whose images.
        force: prepare again in any case.

    Returns:
        Manifest of stage `data`. Its `info`: `source`; `shape` [C, H, W]; `counts` by split; `classes`, names of
        labels 0, 1, …, empty without labels; `label_counts` by class, over all splits; `pixel_mean`, of the training
        images in [0, 1], over all channels; `skipped`, the first 1,000 `{"file", "reason"}` left out;
        `skipped_count`, all of them; `passed_over`, how many files of other endings lie beside them, by ending.

    Raises:
        ConfigError: if `data.*` cannot work.
        PipelineError: naming the file or image that is missing or wrong.
    """
    from pipeline.prepare import stage  # here, so that --help and a wrong configuration wait for no library

    return stage.run(run, force)
