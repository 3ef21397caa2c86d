"""Why a trial's process was lost, in one line: what Ray says of its end, the memory that it had, what to lower."""

import re
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.tune import Callback

from pipeline.config.errors import StorageError
from pipeline.config.sections import Config
from pipeline.remote.failures import failure_reason, is_out_of_memory
from pipeline.remote.memory import in_gib, what_to_lower

__all__ = ["Deaths", "reason_of", "storage_error"]

_MARK = "Failure # "  # before each failure in Tune's error file
_STORAGE = re.compile(rf"(?:[\w.]+\.)?{StorageError.__name__}: (.*)")


def storage_error(trace: str) -> StorageError | None:
    """The storage's error that a traceback ends with, where its last line is one.

    Example:
        >>> storage_error("Traceback ...\\npipeline.config.errors.StorageError: cannot write s3://b/x: timed out")
        StorageError('cannot write s3://b/x: timed out')
    """
    lines = trace.strip().splitlines()
    found = _STORAGE.match(lines[-1].strip()) if lines else None
    return StorageError(found[1]) if found else None


class Deaths(Callback):
    """Knows what Ray has said of the failures of a trial, which Tune tells its searcher nothing of."""

    def __init__(self) -> None:
        self.trials: dict[str, Any] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process is there."""
        self.trials[trial.trial_id] = trial

    def last(self, trial_id: str) -> RayActorError | StorageError:
        """The last failure of a trial: of storage, or of its process in Ray's words, where it has any."""
        file = getattr(self.trials.pop(trial_id, None), "error_file", None)
        text = Path(file).read_text("utf-8") if file is not None else ""
        words = text.rpartition(_MARK)[2].partition("\n")[2].strip()
        return storage_error(words) or RayActorError(error_msg=words or "its process died")


def reason_of(error: Exception, config: Config, sampler_only: bool, peak: float = 0.0, killed: bool = False) -> str:
    """Why a trial failed whose process was lost, or a worker of its group.

    Args:
        error: Ray's.
        config: of the trial; names what to lower.
        sampler_only: whether the trial trained nothing but the sampler.
        peak: MB that the process had, as last reported; 0 if it had reported none.
        killed: whether this machine's kernel has killed a process for want of memory meanwhile.

    Example:
        >>> reason_of(RayActorError(), Config(), True, 5583.0, killed=True)
        'out of memory (peak 5.2 GiB): the kernel killed a process; lower sampler.particles (now 512), or ...'
    """
    of_images = () if sampler_only else ("train.batch_size", "train.memory_mb")
    fewer = "or run fewer trials at a time (tune.max_concurrent)"
    remedy = f"{what_to_lower(config, *of_images, 'sampler.particles')}, {fewer}"
    had = f"peak {in_gib(peak)}" if peak else ""
    if is_out_of_memory(error):
        return f"{failure_reason(error)}; {remedy}"
    if killed:
        about = f" ({had})" if had else ""
        return f"out of memory{about}: the kernel killed a process; {remedy}"
    about = f"; {had}: if the machine's memory ran out (`dmesg`), {remedy}" if had else ""
    return failure_reason(error) + about
