"""The searcher and scheduler of a search: Ray Tune's OptunaSearch and ASHA, with the Optuna study as the only memory.

Tune's own snapshot of an experiment may be older than the study. So nothing is restored from it: a new session reads
from the study which trials ended, hands the interrupted ones out again first, and lets ASHA see the earlier reports.
"""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from pipeline.config.errors import ConfigError, StorageError
from pipeline.config.load import override
from pipeline.config.sections import Config
from pipeline.judge.figures import MAXIMISED
from pipeline.remote.hardware import is_local
from pipeline.remote.memory import kernel_kills, kills_since
from pipeline.store.folder import Folder
from pipeline.store.manifest import say
from pipeline.tune.failures import Deaths, reason_of
from pipeline.tune.internals import open_trials, resume, storage_id
from pipeline.tune.space import SearchSpace
from pipeline.tune.study import best_trial, finished

__all__ = ["StudyScheduler", "StudySearch"]

_LINE_EVERY = 30.0  # seconds without a finished trial


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        step = distribution.step
        return trial.suggest_int(name, distribution.low, distribution.high, step=step, log=distribution.log)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


class StudySearch(OptunaSearch):
    """Suggestions from an Optuna study, interrupted trials first; results, reasons and figures go back into it.

    Args:
        space: the checked search space.
        sampler: Optuna's.
        study: an existing study.
        storage: where it is.
        run: the run's folder, whose `tune/checkpoints` of ended trials are removed.
        directions: minimize or maximize for every metric.
        deaths: callback of the same search.
    """

    def __init__(
        self,
        space: SearchSpace,
        sampler: optuna.samplers.BaseSampler,
        study: optuna.Study,
        storage: optuna.storages.BaseStorage,
        run: Folder,
        directions: Sequence[str],
        deaths: Deaths,
    ):
        modes = [direction[:3] for direction in directions]
        metrics: list[str] = list(space.base.tune.metrics)
        super().__init__(
            dict(space.distributions),
            metric="objective" if len(modes) == 1 else metrics,
            mode=modes[0] if len(modes) == 1 else modes,
            sampler=sampler,
            study_name=study.study_name,
            storage=storage,
        )
        self.space, self.run, self.study, self.deaths = space, run, study, deaths
        self.peaks: dict[str, float] = {}  # MB, of the trials that run
        self.begun: dict[str, tuple[Config, int | None]] = {}  # their configurations; the kernel's kills until then
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.interrupted = [storage_id(trial) for trial in running]
        self.started = self.said = time.monotonic()
        self.ended = 0
        self.stuck = ""  # why a trial cannot go on before the storage is back

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher into a snapshot that nobody reads; a database's URL has a password."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's number and configuration."""
        if self.interrupted:
            trial = resume(self.study, self.interrupted.pop(0))
            for name, distribution in self.space.distributions.items():
                _suggest(trial, name, distribution)  # what it had stays; killed while sampling, it gets the rest
            open_trials(self)[trial_id] = trial
        else:
            super().suggest(trial_id)
            trial = open_trials(self)[trial_id]
        overrides = trial.user_attrs.get("overrides")
        if overrides is None:
            overrides = self.space.overrides(trial.params)
            trial.set_user_attr("overrides", overrides)
        config, invalid = self.space.base, ""
        try:
            config = override(config, overrides)
        except ConfigError as error:  # values that are fine one by one, not together
            invalid = " ".join(str(error).split())
        self.begun[trial_id] = config, kernel_kills() if is_local(config) else None
        origin = trial.user_attrs.get("origin", "sampled")
        values = {} if invalid else config.model_dump(mode="json")
        return {"number": trial.number, "origin": origin, "config": values, "invalid": invalid}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An intermediate report."""
        trial = open_trials(self)[trial_id]
        self.peaks[trial_id] = max(self.peaks.get(trial_id, 0.0), result.get("peak_mb") or 0.0)
        if isinstance(self.metric, str) and not result["failure"]:
            trial.report(result["objective"], result["progress"])
        if time.monotonic() - self.said > _LINE_EVERY:
            self._say(f"; trial {trial.number} at {result['objective']:.4g}")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial: completed, stopped by the scheduler, or failed with a reason."""
        trial = open_trials(self).pop(trial_id)
        result = result or {}
        died = self.deaths.last(trial_id) if error or not result else None
        if isinstance(died, StorageError):  # it stays open in the study, and goes on in the next session
            self.stuck = str(died)
            say(f"tune: trial {trial.number} stopped: {died}")
            return
        mark = "figures/"
        figures = {name.removeprefix(mark): float(result[name]) for name in result if name.startswith(mark)}
        if figures:
            trial.set_user_attr("figures", figures)
        if died is not None or result.get("failure"):
            reason = self._lost(trial_id, died) if died is not None else result["failure"]
            trial.set_user_attr("reason", reason)
            say(f"tune: trial {trial.number} failed: {reason}")
            self.study.tell(trial, state=TrialState.FAIL)
        elif result["finished"]:
            self.study.tell(trial, [figures[metric] for metric in self.space.base.tune.metrics])
        else:
            if isinstance(self.metric, str):  # Tune tells its searcher of the report that stopped a trial only here
                trial.report(result["objective"], result["progress"])
            trial.set_user_attr("reason", f"stopped by the scheduler at report {result['progress']}")
            self.study.tell(trial, state=TrialState.PRUNED)
        self.run.remove(f"tune/checkpoints/{self._study_name}/{trial.number:05d}")
        self.ended += 1
        self._say()

    def _lost(self, trial_id: str, error: Exception) -> str:
        config, kills = self.begun[trial_id]
        peak = self.peaks.get(trial_id, 0.0)
        return reason_of(error, config, self.space.only_sampler, peak, kills_since(kills))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on storage, and nothing is ever restored from Tune's snapshot."""

    def _say(self, more: str = "") -> None:
        self.said = time.monotonic()
        settings = self.space.base.tune
        ended = finished(self.study)
        line = f"tune: {len(ended)}/{settings.num_samples} trials"
        if any(trial.state == TrialState.COMPLETE for trial in ended):
            best = best_trial(self.study)
            where = "defaults" if best.user_attrs.get("origin") == "defaults" else show(best.user_attrs["overrides"])
            line += f", best {settings.metrics[0]} {best.values[0]:.4g} (trial {best.number}: {where})"
        if failed := sum(trial.state == TrialState.FAIL for trial in ended):
            line += f", {failed} failed"
        if self.ended and (rest := max(0, settings.num_samples - len(ended))):
            left = round((self.said - self.started) / self.ended * rest)
            line += f", {left // 60}:{left % 60:02d} left"
        say(line + more)


def show(overrides: dict[str, Any]) -> str:
    """Overrides in a few words.

    Example:
        >>> show({"sampler.particles": 512, "sampler.bandwidths": [0.1234, 0.5]})
        'particles 512, bandwidths [0.123 0.5]'
    """

    def text(value: Any) -> str:
        if isinstance(value, list):
            return f"[{' '.join(map(text, value))}]"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{path.rpartition('.')[2]} {text(value)}" for path, value in overrides.items())


class StudyScheduler(AsyncHyperBandScheduler):
    """ASHA that never stops the config's own values, what the others are compared with.

    Args:
        config: the run's configuration.
        phases: training phases of a trial; each has `tune.reports` reports.
        study: whose earlier trials count.
    """

    def __init__(self, config: Config, phases: int, study: optuna.Study):
        total = phases * config.tune.reports
        super().__init__(
            time_attr="progress",
            metric="objective",
            mode="max" if config.tune.metrics[0] in MAXIMISED else "min",
            max_t=total + 1,  # trials end by themselves
            grace_period=max(1, total // 4),
            reduction_factor=2,
        )
        for trial in finished(study):
            known: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")
            self.on_trial_add(None, known)  # type: ignore[arg-type]  # the controller is not looked at
            for progress, value in sorted(trial.intermediate_values.items()):
                super().on_trial_result(None, known, {"progress": progress, "objective": value})  # type: ignore[arg-type]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """ASHA's decision, except for the config's own values."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if trial.config["origin"] == "defaults" else decision
