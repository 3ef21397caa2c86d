"""What training says when its workers fail: how often they did, why, and what to lower when memory ran out."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.errors import PipelineError
from pipeline.config.sections import Config
from pipeline.remote.failures import WorkerMemoryError, failure_reason, is_lost, is_out_of_memory
from pipeline.remote.memory import in_gib, what_to_lower

__all__ = ["cause_of", "counting", "explain", "remedy", "telling"]


def telling(failures: Mapping[int, Exception]) -> Exception:
    """Of the errors of one failure, by rank, the one that says why: the others only lost their peer.

    Example:
        >>> telling({0: RuntimeError("Connection closed by peer"), 1: MemoryError()})
        MemoryError()
    """

    def order(error: Exception) -> int:
        ours = (is_out_of_memory(error), isinstance(error, PipelineError), isinstance(error, OSError))
        kinds = (*ours, is_lost(error))
        if True in kinds:
            return kinds.index(True)
        collateral = any(word in str(error) for word in ("Connection closed by peer", "gloo", "NCCL"))
        return len(kinds) + collateral

    return min(failures.values(), key=order)


def counting(board: Any, most: int) -> Any:
    """A callback of Ray Train's that tells the board of every failure of a worker as it happens.

    Ray's last error does not say how many there were before it: lost workers are not the only failures, and not every
    failure is one that Ray starts the workers again for.

    Args:
        board: progress actor.
        most: `train.max_failures`.
    """
    from ray.train import UserCallback

    class Failures(UserCallback):
        """Runs in Train's controller process."""

        def __init__(self) -> None:
            self.count = 0

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            """One or more workers have failed."""
            inner = [getattr(error, "health_check_failure", error) for error in worker_exceptions.values()]
            if any(getattr(error, "preempted", False) for error in inner):
                return  # announced by the cluster, and none of `max_failures`
            self.count += 1
            reason = failure_reason(telling(worker_exceptions))
            board.fail.remote(reason)
            if self.count <= most:
                board.say.remote(f"a worker failed: {reason}; starting again, {self.count} of {most} times")

    return Failures()


def cause_of(error: Exception) -> Exception:
    """The error of the worker, or of Train's own processes, that ended the training.

    Example:
        >>> cause_of(ValueError("of no worker"))
        ValueError('of no worker')
    """
    if failures := getattr(error, "worker_failures", None):
        return telling(failures)
    return getattr(error, "controller_failure", None) or error


def remedy(config: Config) -> str:
    """What to do about workers that need more memory than there is.

    Example:
        >>> remedy(Config())
        'lower train.batch_size (now ...), sampler.particles (now ...) or train.memory_mb (now 4096)'
    """
    fewer = ", or run fewer workers on a node" if config.train.most_workers > 1 else ""
    return what_to_lower(config, "train.batch_size", "sampler.particles", "train.memory_mb") + fewer


def explain(error: Exception, failures: int | None, record: Mapping[str, Any], config: Config, killed: bool) -> str:
    """Why training ended, in one line where we know the reason, else with Ray's traceback.

    Args:
        error: Ray's `TrainingFailedError`.
        failures: how often workers failed, the last time included; None if that is not known.
        record: rank 0's last progress record; may hold `peak_mb`.
        config: names what to lower.
        killed: whether this machine's kernel has killed a process for want of memory meanwhile.

    Example:
        >>> print(explain(PipelineError("cannot write a.txt: disk full"), 2, {}, Config(), False))
        training failed 2 times (train.max_failures=3); ... The last failure: cannot write a.txt: disk full
    """
    cause = cause_of(error)
    many = "" if failures is None else f" {failures} time{'' if failures == 1 else 's'}"
    failed = f"training failed{many} (train.max_failures={config.train.max_failures})"
    again = "the same command goes on from the last checkpoint"
    anew = f"{again}, other settings start anew"
    peak = record.get("peak_mb")
    had = f"rank 0 had a peak of {in_gib(peak)}" if peak else ""
    if isinstance(cause, WorkerMemoryError):
        return f"a training worker {cause}; {remedy(config)}; {failed}; {anew}"
    if is_out_of_memory(cause):
        reason = failure_reason(cause).removeprefix("out of memory")
        return f"a training worker ran out of memory{reason}; {remedy(config)}; {failed}; {anew}"
    if is_lost(cause):
        if killed:
            about = f" ({had})" if had else ""
            killer = "the kernel killed a process"
            return f"a training worker ran out of memory{about}: {killer}; {remedy(config)}; {failed}; {anew}"
        about = f"; {had}: if the machine's memory ran out (`dmesg`), {remedy(config)}" if had else ""
        return f"{failed}; {again}. The last failure: {failure_reason(cause)}{about}"
    if isinstance(cause, PipelineError):
        return f"{failed}; {again}. The last failure: {cause}"
    if isinstance(cause, OSError):
        return f"{failed}; {again}. The last failure: cannot write a checkpoint: {cause}"
    return f"{failed}; {again}. The last failure:\n{error}"
