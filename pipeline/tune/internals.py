"""Names of Optuna and of Ray Tune's wrapper of it that neither promises to keep; tried with Optuna 5.0, Ray 2.60.

tests/pipeline/test_internals.py asserts that the installed versions have them and says which took one away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

if TYPE_CHECKING:  # Ray reads its environment when it is imported, which the search sets first
    from ray.tune.search.optuna import OptunaSearch

__all__ = ["contains", "open_trials", "resume", "storage_id"]


def storage_id(trial: FrozenTrial) -> int:
    """What a study's storage calls a trial: the public `number` does not open one again."""
    return int(trial._trial_id)


def resume(study: Study, identity: int) -> Trial:
    """A running trial of an earlier process, by its `storage_id`, to go on asking and telling."""
    return Trial(study, identity)


def open_trials(search: OptunaSearch) -> dict[str, Trial]:
    """The trials of Ray Tune's searcher by Tune's own names, which `OptunaSearch` fills and reads."""
    return search._ot_trials


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value, as the distribution stores it, lies in it."""
    return bool(distribution._contains(value))
