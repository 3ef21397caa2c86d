"""Connect to a Ray cluster or start a local one, quietly; run functions there."""

import logging
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.config.errors import PipelineError
from pipeline.config.sections import Config
from pipeline.remote.hardware import in_job, is_local, use_cuda
from pipeline.remote.internals import drop_death_notices

__all__ = ["connect", "parallel_map", "run_on_accelerator", "task_resources"]

# Read by Ray when it is imported or started, so set on import of this module and inherited by its processes.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # a local start listens on 127.0.0.1 only
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2": "1",
    # Ray Train takes one report (one checkpoint) from its workers at each of these checks; at the usual 2 s a run of
    # short epochs outpaces it, goes on long after its last step, and a killed one resumes far behind.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A task whose process is killed for want of memory is started again without end otherwise.
    "RAY_task_oom_retries": "3",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # of several metrics, which our searcher finds below `figures`
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a page each; the searcher says them in a line
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)


def _dashboard() -> dict[str, Any]:
    """Where the dashboard listens, told to every process: with a second Ray on the machine they could not find it."""
    for wanted in (8265, 0):  # Ray's usual port, or any
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            port = probe.getsockname()[1]
            break
    address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    return {"dashboard_port": port, "runtime_env": {"env_vars": address}}


def _start(config: Config) -> None:
    import ray

    drop_death_notices()
    settings = config.ray
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.address is not None:
        ray.init(address=settings.address, **common)
    elif in_job():
        ray.init(**common)  # attaches to the job's cluster, which fixes the resources
    else:
        # The processes are all on this machine; gloo would otherwise pick an interface by the host's name.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # Nothing takes this machine away with notice: one process fewer for each training.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ray.init(
            # "local": never a stale address that a killed cluster left in Ray's temporary folder.
            address="local",
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            include_dashboard=settings.dashboard,
            object_store_memory=settings.object_store_mb * 2**20,
            **common,
            **(_dashboard() if settings.dashboard else {}),
        )


def _start_patiently(config: Config) -> None:
    """Ray waits 30 seconds for its own processes, which on a busy machine may take longer: then once more."""
    import ray

    try:
        _start(config)
    except Exception as error:
        if config.ray.address is not None or "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        _start(config)


@contextmanager
def connect(config: Config) -> Iterator[None]:
    """Ray for the duration of a block: the job's own cluster, `ray.address`, or a new local one.

    Nested use is free: an inner block uses the outer block's connection.

    Raises:
        PipelineError: if Ray cannot be started or joined, with the reason.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        _start_patiently(config)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and plain Exception
        ray.shutdown()
        reason = str(error).strip().partition("\n")[0]
        if config.ray.address is not None:
            raise PipelineError(
                f"ray.address: cannot join the cluster at {config.ray.address}: {reason}; is it up (`ray status`), "
                "of the same Ray version, and is RAY_AUTH_TOKEN or ~/.ray/auth_token its token?"
            ) from error
        raise PipelineError(
            f"Ray did not start: {reason}; if the machine is busy or short of memory, the same command may work later"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def task_resources(cuda: bool, tasks: int) -> dict[str, float]:
    """Ray resources of each of `tasks` tasks: of a GPU the share that lets all of them run at once.

    Where the cluster has no GPU yet, one each: it scales by demand.
    """
    import ray

    if not cuda:
        return {"num_cpus": 1}
    gpus = int(ray.cluster_resources().get("GPU", 0)) or tasks
    return {"num_cpus": 1, "num_gpus": 1 / math.ceil(tasks / gpus)}


def parallel_map(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    workers: int,
    resources: dict[str, float] | None = None,
    what: str = "a task",
) -> Iterator[Any]:
    """Results of `function` over `items` in their order, from `workers` Ray tasks at a time.

    Args:
        function: picklable.
        items: arguments, one each.
        workers: tasks in flight.
        resources: Ray resources of a task, e.g. `{"num_cpus": 1, "num_gpus": 0.5}`.
        what: a task is called in errors.

    Raises:
        PipelineError: of the function, as it is raised there, not in Ray's wrapping; or because a task was lost.
    """
    import ray

    def result(reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, PipelineError) else error from None
        except ray.exceptions.RayError as error:
            from pipeline.remote.failures import failure_reason  # which loads torch, as a finished run need not

            raise PipelineError(f"{what} failed: {failure_reason(error)}") from error

    task: Any = ray.remote(function).options(**(resources or {"num_cpus": 1}))
    pending: list[Any] = []
    waiting = iter(items)
    for item in waiting:
        pending.append(task.remote(item))
        if len(pending) >= workers:
            yield result(pending.pop(0))
    while pending:
        yield result(pending.pop(0))


def run_on_accelerator(config: Config, function: Callable[[Any], Any], argument: Any) -> Any:
    """`function(argument)`, on a GPU of the cluster if there is a cluster and `train.device` says so, else here.

    Raises:
        PipelineError: as `parallel_map`.
    """
    if is_local(config):
        return function(argument)
    with connect(config):
        if not use_cuda(config.train.device):
            return function(argument)
        return next(parallel_map(function, [argument], 1, task_resources(True, 1)))
