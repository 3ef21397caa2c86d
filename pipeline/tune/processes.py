"""How a trial runs under Ray Tune: in Tune's own process, or as a Ray Train group of several workers."""

import uuid
from typing import Any

import torch

from pipeline.tune.trial import Common, run_trial
from pipeline.train.worker import train_world
from ldcvae.training.world import World

__all__ = ["nested_trial", "single_trial"]


def _refused(params: dict[str, Any]) -> dict[str, Any]:
    return {"progress": 0, "objective": 0.0, "figures": {}, "finished": False, "failure": params["invalid"]}


def single_trial(params: dict[str, Any], job: dict[str, Any], common: Common) -> None:
    """A trial of one worker.

    Args:
        params: `number`, `config`, `invalid` (why the configuration was refused, or empty) from the searcher.
        job: `run`, `study`, `threads`, the same for all trials.
        common: what all trials share, from the object store.
    """
    from ray import tune

    if params["invalid"]:
        tune.report(_refused(params))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = {"config": params["config"], "number": params["number"]}
    run_trial(job | own, common, World(device=device), tune.report)


def _rank(settings: dict[str, Any]) -> None:
    import ray
    import ray.train

    run_trial(settings["job"], ray.get(settings["common"]), train_world(), ray.train.report)


def nested_trial(params: dict[str, Any], job: dict[str, Any], common: Common) -> None:
    """A trial of several workers: this process only drives a Ray Train group; arguments as in `single_trial`."""
    import ray
    import ray.train
    from ray import tune
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from pipeline.remote.connect import use_cuda
    from pipeline.config.sections import Config
    from pipeline.store.folder import Folder

    if params["invalid"]:
        tune.report(_refused(params))
        return
    config = Config.model_validate(params["config"])
    cuda = use_cuda(config.train.device)
    own = {"config": params["config"], "number": params["number"], "threads": 1}
    # Checkpoints are the trial's own, so Train has nothing to resume: a name that is never used again.
    filesystem, path = (Folder(job["run"]) / "tune/ray").for_arrow()
    TorchTrainer(
        _rank,
        train_loop_config={"job": job | own, "common": ray.put(common)},
        scaling_config=ScalingConfig(
            num_workers=config.train.least_workers,
            use_gpu=cuda,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if cuda else {}),
        ),
        run_config=RunConfig(
            name=f"{job['study']}-trial-{params['number']:05d}-{uuid.uuid4().hex[:8]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.tune.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # Train V2 has its own callbacks
        ),
    ).fit()
