"""Drives a training on Ray Train: how many workers, with which resources, and what it says when they fail."""

import contextlib
import importlib
import threading
from typing import Any

from ldcvae.checks import misfits
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.together import equal_parts
from pipeline.remote.connect import connect
from pipeline.remote.hardware import is_local, place_workers
from pipeline.remote.internals import cancel_reservation, reservation_of
from pipeline.remote.memory import kernel_kills, kills_since
from pipeline.remote.progress import board
from pipeline.store.folder import Folder
from pipeline.store.history import HISTORY_FILES, read_history
from pipeline.store.manifest import say
from pipeline.store.model import MODEL_FILES, build_model, perceptual_features, publish
from pipeline.store.run import Run
from pipeline.train.failures import counting, explain
from pipeline.train.worker import train_worker

__all__ = ["check", "work"]

_RESERVATION = "train/reservation.json"
_LOOK_FOR_ROOM_EVERY = 30.0  # seconds; a group that grows starts anew from its last checkpoint


def check(run: Run) -> None:
    """Mistakes that only data and config together show, found before Ray starts."""
    config, mistakes = run.config, [*equal_parts(run.config)]
    try:
        build_model(config, run.shape)
    except ValueError as error:
        mistakes.append(f"model.network: {error}")
    try:
        perceptual_features(config, run.shape)
    except ConfigError as error:
        mistakes.append(str(error))
    count = run.data.info["counts"].get("train", 0)
    mistakes += misfits(count, min(run.shape[1:]), config.decoder, config.sampler)
    if mistakes:
        raise ConfigError("\n  ".join(["the configuration does not fit the data:", *mistakes]))


def _replace_reservation(trainer: Any, folder: Folder) -> None:
    """Give up what a killed driver of this run had reserved, and note what this one reserves."""
    if folder.exists(_RESERVATION):
        cancel_reservation(folder.read_json(_RESERVATION)["requester"])
    if (own := reservation_of(trainer)) is not None:
        folder.write_json(_RESERVATION, {"requester": own})


def _told(progress: Any) -> tuple[int | None, dict[str, Any]]:
    """(failures of workers, rank 0's last progress record) from the board, which may be lost with its node."""
    import ray

    try:
        record, _, failures = ray.get(progress.read.remote(), timeout=10)
    except ray.exceptions.RayError:
        return None, {}
    return len(failures), record


def _import_ahead() -> None:
    """Seconds of imports of the stages after this one, for which a driver that waits for workers has time."""
    with contextlib.suppress(Exception):  # told by who needs them
        for name in ("torch._dynamo", "sklearn.cluster"):  # by the first optimizer, the first k-means
            importlib.import_module(name)


def _fit(run: Run, name: str) -> dict[str, Any]:
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings = run.config.train
    placement = place_workers(run.config)
    workers = settings.num_workers
    if placement.fits < settings.least_workers:  # a cluster that scales by demand starts without any
        kind = "GPU" if placement.cuda else "CPU"
        say(f"train: waiting for {settings.least_workers} {kind}s, the cluster has {placement.fits} now")
    filesystem, path = (run.folder / "train").for_arrow()
    kills = kernel_kills() if is_local(run.config) else None
    with board("train") as progress:
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]  # Train V2 takes and returns dicts
            train_loop_config={"run": run, "name": name, "threads": placement.threads, "board": progress},
            scaling_config=ScalingConfig(
                num_workers=workers if isinstance(workers, int) else (workers[0], workers[1]),  # type: ignore[arg-type]
                use_gpu=placement.cuda,
                resources_per_worker=placement.resources,
                elastic_resize_monitor_interval_s=_LOOK_FOR_ROOM_EVERY,  # type: ignore[call-arg]  # Train V2's
            ),
            run_config=RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=filesystem,
                checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
                failure_config=FailureConfig(max_failures=settings.max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
                callbacks=[counting(progress, settings.max_failures)],
            ),
        )
        if isinstance(workers, list):
            _replace_reservation(trainer, run.folder)
        # Not before Ray has started its processes: a fork amid an import may hang.
        threading.Thread(target=_import_ahead, daemon=True).start()
        try:
            return trainer.fit().return_value or {}  # type: ignore[attr-defined]
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:  # the latter: Train's own process
            failures, record = _told(progress)
            if failures is not None and not hasattr(error, "worker_failures"):
                failures += 1  # of Train's own processes, which no callback hears of
            killed = kills_since(kills)
            raise PipelineError(explain(error, failures, record, run.config, killed)) from error


def work(run: Run, force: bool, fingerprint: str) -> tuple[list[str], dict[str, Any]]:
    """Train, and name what was written and what is to be told of it.

    Raises:
        PipelineError: if the loss became non-finite or workers failed too often.
    """
    config, folder = run.config, run.folder
    # The name ties Ray's checkpoints to exactly these inputs: others start anew, the same ones go on.
    name = f"ray-{fingerprint[:12]}"
    if force:
        folder.remove(f"train/{name}")
    with connect(config):
        outcome = _fit(run, name)
    folder.remove(_RESERVATION)
    if "failure" in outcome:
        raise PipelineError(outcome["failure"])
    last = {record["phase"]: record for record in read_history(folder)}
    kept = publish(folder, name, before=config.decoder.epochs > 0)
    figures = {"figures": last, "num_workers": config.train.num_workers}
    return [*MODEL_FILES, *HISTORY_FILES, *kept], figures | outcome
