"""The Optuna study of a search: where it lives, how it samples, and its trials as a table."""

import io
import json
import os
import re
from collections.abc import Iterable
from datetime import UTC
from typing import Any, Literal
from urllib.parse import quote

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.sections import TuneConfig
from pipeline.judge.figures import MAXIMISED
from pipeline.store.folder import Folder
from pipeline.tune.space import SearchSpace

__all__ = [
    "JOURNAL",
    "best_trial",
    "build_sampler",
    "enqueue_points",
    "finished",
    "open_storage",
    "trials_table",
]

JOURNAL = "tune/study.log"
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class FolderJournal(BaseJournalBackend):
    """Optuna's journal as one object on a store that cannot append; for one writer, the search's driver.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        content = folder.read(JOURNAL).decode() if folder.exists(JOURNAL) else ""
        self.logs: list[dict[str, Any]] = [json.loads(line) for line in content.splitlines()]

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The records from a number on."""
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add records and write the journal whole."""
        self.logs += logs
        self.folder.write(
            JOURNAL, "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in self.logs).encode()
        )


def _open_database(url: str) -> BaseStorage:
    """The database of a URL whose variables are replaced by their values; user and query as a URL writes them."""
    names = _VARIABLE.findall(url)
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(f"tune.study_url: {url!r} names {missing[0]}, an environment variable that is not set")
    scheme, separator, rest = url.partition("://")
    authority = re.match(r"[^/?]*", rest)[0]  # type: ignore[index]  # matches always
    user, at, host = authority.rpartition("@")
    path, mark, query = rest[len(authority) :].partition("?")
    user, query = (_VARIABLE.sub(lambda name: quote(os.environ[name[1]], safe=""), part) for part in (user, query))
    host, path = (_VARIABLE.sub(lambda name: os.environ[name[1]], part) for part in (host, path))
    expanded = "".join([scheme, separator, user, at, host, path, mark, query])
    try:
        return RDBStorage(expanded)
    except Exception as error:
        text = str(error).replace(expanded, url)
        secrets = {os.environ[name]: name for name in names} | {
            quote(os.environ[name], safe=""): name for name in names
        }
        for value in sorted(filter(None, secrets), key=len, reverse=True):  # one may hold another
            text = text.replace(value, f"${secrets[value]}")
        reason = text.splitlines()
        raise PipelineError(f"tune.study_url: cannot open {url!r}: {reason[0] if reason else error!r}") from None


def _cut_half_a_line(path: str) -> None:
    """What an append left that was cut short: the next one would be glued to it. The run's lease has one writer."""
    if not os.path.exists(path):
        return
    with open(path, "rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def open_storage(run: Folder, url: str | None) -> BaseStorage:
    """Optuna's storage: the database at `url`, else the journal `tune/study.log` of the run.

    Raises:
        ConfigError: if the URL names a variable that is not set.
        PipelineError: if the database cannot be reached or the journal is damaged.
    """
    if url is not None:
        return _open_database(url)
    try:
        if run.is_local:
            os.makedirs(run.path("tune"), exist_ok=True)
            _cut_half_a_line(run.path(JOURNAL))
            return JournalStorage(JournalFileBackend(run.path(JOURNAL)))
        return JournalStorage(FolderJournal(run))
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:  # as Optuna replays it
        raise PipelineError(
            f"{run.url}/{JOURNAL} is damaged: {error or type(error).__name__}; delete it to search anew, or go on "
            "under another name=…"
        ) from None


def build_sampler(settings: TuneConfig, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler.

    Args:
        settings: the `tune` section.
        seed: of the run.
        trials: how many the study has already; a search that goes on must not repeat its first draws.
    """
    own = (seed + 7919 * trials) % 2**31
    samplers = optuna.samplers
    match settings.sampler:
        case "tpe":
            return samplers.TPESampler(
                seed=own,
                multivariate=True,
                constant_liar=True,
                n_startup_trials=max(4, min(10, settings.num_samples // 3)),
            )
        case "gp":
            return samplers.GPSampler(seed=own, n_startup_trials=max(4, min(10, settings.num_samples // 3)))
        case "cmaes":
            return samplers.CmaEsSampler(seed=own, warn_independent_sampling=False)
        case "qmc":
            # A sequence over the whole study: its position is kept in the study, so the seed stays.
            return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=own)


def enqueue_points(study: optuna.Study, space: SearchSpace) -> None:
    """Queue the config's own values and `tune.start_from`, each once, before anything is sampled.

    Raises:
        ConfigError: if `tune.num_samples` leaves no room for them; none is queued then.
    """
    trials = study.get_trials(deepcopy=False)
    known = {trial.user_attrs.get("origin_key") for trial in trials}
    points: list[tuple[str, dict[str, Any]]] = [("defaults", {})]
    points += [("start_from", values) for values in space.base.tune.start_from]
    keyed = {json.dumps(point, sort_keys=True): point for point in points}
    new = {key: point for key, point in keyed.items() if key not in known}
    if new and (least := len(trials) + len(new)) > (most := space.base.tune.num_samples):
        raise ConfigError(
            f"tune.num_samples: {most} leaves no room for the points of tune.start_from that are not evaluated yet "
            f"({len(new)}); must be at least {least}"
        )
    for key, (origin, values) in new.items():
        config = space.point(values)
        # The point is evaluated exactly as written; its parameters say where it is in the space.
        overrides = {} if origin == "defaults" else _flat(space, config, values)
        attributes = {"origin": origin, "origin_key": key, "overrides": overrides}
        study.enqueue_trial(space.params(config), user_attrs=attributes)


def _flat(space: SearchSpace, config: Any, values: dict[str, Any]) -> dict[str, Any]:
    ladder = any(path.startswith("sampler.bandwidths") for path in values)
    plain = {path: value for path, value in values.items() if not path.startswith("sampler.bandwidths")}
    return plain | ({"sampler.bandwidths": list(config.sampler.bandwidths)} if ladder else {})


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that came to an end, in order."""
    return study.get_trials(deepcopy=False, states=_FINISHED)


def best_trial(study: optuna.Study) -> FrozenTrial:
    """The completed trial that is best in the first metric.

    Raises:
        PipelineError: if no trial completed, with the reasons.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        reasons = {trial.user_attrs.get("reason", "unknown") for trial in finished(study)}
        raise PipelineError(f"no trial of the search completed: {'; '.join(sorted(reasons))}")
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    return min(done, key=lambda trial: (sign * trial.values[0], trial.number))


def directions(settings: TuneConfig) -> list[Literal["minimize", "maximize"]]:
    """Optuna's direction of every metric."""
    return ["maximize" if metric in MAXIMISED else "minimize" for metric in settings.metrics]


def trials_table(study: optuna.Study) -> pa.Table:
    """Every finished trial: number, state, reason, origin, times, pareto, `param.<key>` and figures.

    `pareto` marks the trials that no other beats in every metric; `seconds` is the training itself, `duration_s` from
    first start to end.
    """
    front = {trial.number for trial in study.best_trials}
    trials = finished(study)
    parameters = sorted({path for trial in trials for path in trial.params})
    figures = sorted({name for trial in trials for name in trial.user_attrs.get("figures", {})})
    rows = []
    for trial in trials:
        ends = (trial.datetime_start, trial.datetime_complete)
        row: dict[str, Any] = {
            "number": trial.number,
            "state": trial.state.name,
            "reason": trial.user_attrs.get("reason"),
            "origin": trial.user_attrs.get("origin", "sampled"),
            "started": ends[0].astimezone(UTC) if ends[0] else None,
            "duration_s": (ends[1] - ends[0]).total_seconds() if ends[0] and ends[1] else None,
            "pareto": trial.number in front,
            "overrides": json.dumps(trial.user_attrs.get("overrides")),
        }
        row |= {f"param.{path}": trial.params.get(path) for path in parameters}
        row |= {name: trial.user_attrs.get("figures", {}).get(name) for name in figures}
        rows.append(row)
    return pa.Table.from_pylist(rows)


def table_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
