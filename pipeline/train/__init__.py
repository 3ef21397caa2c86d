"""Train encoder, decoder and sampler net: phase 1 and 2, data parallel on Ray Train.

Reads the data set that pipeline.prepare wrote; writes `model/` (safetensors and config.json), `train/metrics.jsonl`,
TensorBoard events and checkpoints. Killed at any moment, the same command goes on from the last checkpoint.
"""

from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]


def run(run: Run, force: bool = False) -> Manifest:
    """Train, unless a model for the same data and config is there.

    Args:
        run: whose model.
        force: train from scratch even so.

    Returns:
        The stage's manifest; `info` holds the last figures of both phases.

    Raises:
        PipelineError: if the data are not prepared, the loss became non-finite or workers failed too often.
        ConfigError: if config and data do not fit together.
    """
    from pipeline.train import stage  # here, so that --help and a wrong configuration wait for no library

    return stage.run(run, force)
