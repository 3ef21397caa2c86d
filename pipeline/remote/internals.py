"""Names of Ray that Ray does not promise to keep, all of them, each with why it is needed; tried with Ray 2.60.

tests/pipeline/test_internals.py asserts that the installed Ray has them and says which version took one away.
"""

from typing import Any

__all__ = [
    "cancel_reservation",
    "count_killed_trials_as_lost",
    "drop_death_notices",
    "keep_keys_out_of_runtime_environments",
    "reservation_of",
]

COORDINATOR = "AutoscalingCoordinator"
"""Name and namespace of the actor that keeps what elastic training groups have reserved (Ray 2.52 and later)."""


def reservation_of(trainer: Any) -> str | None:
    """Under which name a trainer's driver reserves resources; None where Ray does not tell.

    `train_run_context.run_id` of a Train V2 trainer is not public, nor is the form of the name.
    """
    own = getattr(getattr(trainer, "train_run_context", None), "run_id", None)
    return f"train-{own}" if own is not None else None


def cancel_reservation(name: str) -> None:
    """Give up what a killed driver had reserved on a cluster that lives on.

    Ray's coordinator would keep it for three minutes, in which the new group of workers waits. Where there is no such
    coordinator, nothing happens.
    """
    import ray

    try:
        coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
        ray.get(coordinator.cancel_request.remote(requester_id=name), timeout=60)
    except (ValueError, AttributeError, ray.exceptions.RayError):
        pass  # a cluster of its own, or an older one that has forgotten


def keep_keys_out_of_runtime_environments() -> None:
    """Keep Tune from copying the AWS_* variables into runtime environments, which Ray writes into its logs.

    A trial has them from its node anyway.
    """
    from ray.tune.execution import class_cache

    secrets = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(secrets)


def count_killed_trials_as_lost() -> None:
    """Let Tune take a trial's process that Ray's memory monitor has killed for what it is, a process that was lost.

    Ray raises `OutOfMemoryError` for it, which is no `RayActorError`: Tune ended the whole search with it, where any
    other death of the process costs the trial one of its tries.
    """
    from ray.air.execution._internal import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    fail = RayActorManager._actor_task_failed
    if hasattr(fail, "lost"):  # done already
        return

    def lost(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        killed = isinstance(exception, OutOfMemoryError)
        fail(self, tracked_actor_task, RayActorError(error_msg=str(exception)) if killed else exception)

    lost.lost = fail  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = lost  # type: ignore[method-assign]


_DEATHS = ("died or was killed while executing", "failed due to oom", "killed due to the node running low on memory")


def drop_death_notices() -> None:
    """Keep Ray from printing a page for every process that dies: whoever waits for it says so in one line.

    Other notices of the cluster, of work that nobody has room for say, are printed as before. `log_to_driver=False`
    does not reach them, and nothing public does.
    """
    from ray._private import worker

    show = getattr(worker, "print_to_stdstream", None)
    if show is None or hasattr(show, "notices"):  # done already
        return

    def notices(data: dict[str, Any], *more: Any, **named: Any) -> None:
        if not any(mark in str(line) for line in data.get("lines", ()) for mark in _DEATHS):
            show(data, *more, **named)

    notices.notices = show  # type: ignore[attr-defined]
    worker.print_to_stdstream = notices
