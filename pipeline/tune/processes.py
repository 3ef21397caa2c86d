"""How a trial runs under Ray Tune: in Tune's own process, or as a Ray Train group of several workers."""

import uuid
from dataclasses import replace
from typing import Any

from ldcvae.training.world import World
from pipeline.config.errors import StorageError
from pipeline.config.load import parse_config
from pipeline.remote.device import process_device
from pipeline.remote.hardware import on_shares, use_cuda
from pipeline.tune.trial import Trial, run_trial

__all__ = ["nested_trial", "single_trial"]


def _failed(reason: str) -> dict[str, Any]:
    return {"progress": 0, "objective": 0.0, "figures": {}, "finished": False, "failure": reason}


def _own(params: dict[str, Any], template: Trial) -> Trial:
    """The trial of these parameters, from one that has what all trials share."""
    return replace(template, run=template.run.with_config(parse_config(params["config"])), number=params["number"])


def single_trial(params: dict[str, Any], template: Trial) -> None:
    """A trial of one worker.

    Args:
        params: `number`, `config`, `invalid` (why the configuration was refused, or empty) from the searcher.
        template: what all trials share, from the object store.
    """
    from ray import tune

    if params["invalid"]:
        tune.report(_failed(params["invalid"]))
        return
    trial = _own(params, template)
    config = on_shares(trial.run.config, trial.run.config.tune.gpus_per_trial)
    run_trial(trial, World(device=process_device(config)), tune.report)


def _rank(settings: dict[str, Any]) -> None:
    import ray
    import ray.train

    from pipeline.train.worker import train_world

    run_trial(ray.get(settings["trial"]), train_world(), ray.train.report)


def nested_trial(params: dict[str, Any], template: Trial) -> None:
    """A trial of several workers: this process only drives a Ray Train group; arguments as in `single_trial`."""
    import ray
    import ray.train
    from ray import tune
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from pipeline.train.failures import cause_of
    from pipeline.tune.failures import reason_of

    if params["invalid"]:
        tune.report(_failed(params["invalid"]))
        return
    trial = replace(_own(params, template), threads=1)
    config = trial.run.config
    cuda = use_cuda(config.train.device)
    # Checkpoints are the trial's own, so Train has nothing to resume: a name that is never used again.
    filesystem, path = (trial.run.folder / "tune/ray").for_arrow()
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"trial": ray.put(trial)},
        scaling_config=ScalingConfig(
            num_workers=config.train.least_workers,
            use_gpu=cuda,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if cuda else {}),
        ),
        run_config=RunConfig(
            name=f"{trial.study}-trial-{trial.number:05d}-{uuid.uuid4().hex[:8]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.tune.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # Train V2 has its own callbacks
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:  # after all its tries; raised, Tune would grant as many again
        if isinstance(cause := cause_of(error), StorageError):
            raise cause from None
        tune.report(_failed(reason_of(cause, config, trial.shared is not None)))
