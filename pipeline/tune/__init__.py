"""Search hyperparameters with Ray Tune and Optuna; docs/tuning.md tells how.

Reads the data set, and where only the sampler is searched the run's own autoencoder; both are made first if they
are missing. Writes `tune/best.yaml`, a configuration for `python -m pipeline.run --config`, `tune/trials.parquet`,
pictures and the Optuna study. Killed at any moment, the same command goes on.
"""

from pipeline.store.manifest import Manifest
from pipeline.store.run import Run

__all__ = ["run"]


def run(run: Run, force: bool = False) -> Manifest:
    """Search `tune.space`, unless that is done; raising `tune.num_samples` goes on.

    Args:
        run: whose hyperparameters.
        force: begin a new study.

    Returns:
        The stage's manifest; `info` holds the best trial and the defaults' figures.

    Raises:
        ConfigError: with every mistake in the search space, or if a trial does not fit the cluster.
        PipelineError: if no trial completed, with the reasons.
    """
    from pipeline.tune import stage  # here, so that --help and a wrong configuration wait for no library

    return stage.run(run, force)
