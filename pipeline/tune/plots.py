"""Pictures of a search: how it went, which values were good, what mattered, and what several metrics trade."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pipeline.judge.pages.pictures import LIGHT, Picture, Theme, new_figure, png_bytes

__all__ = ["history", "importances", "parallel_coordinates", "search_pictures"]

_LEAST_TRIALS = 4  # fewer say nothing of importance


def _position(trial: FrozenTrial, name: str) -> float:
    """Where a trial's value lies in its distribution, 0 at the low end and 1 at the high end.

    Example:
        >>> distribution = {"n": optuna.distributions.IntDistribution(10, 1000, log=True)}
        >>> trial = optuna.trial.create_trial(params={"n": 100}, distributions=distribution, value=0.0)
        >>> round(_position(trial, "n"), 3)
        0.5
    """
    value, distribution = trial.params[name], trial.distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices.index(value) / max(1, len(distribution.choices) - 1)
    low, high = (float(getattr(distribution, end)) for end in ("low", "high"))
    if getattr(distribution, "log", False):
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float((value - low) / (high - low)) if high > low else 0.5


def _ends(trial: FrozenTrial, name: str) -> tuple[str, str]:
    distribution: Any = trial.distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        return str(distribution.choices[0]), str(distribution.choices[-1])
    return f"{distribution.low:g}", f"{distribution.high:g}"


def history(trials: Sequence[FrozenTrial], metric: str, maximise: bool, theme: Theme = LIGHT) -> bytes:
    """Every trial's first metric, stopped ones hollow, and the best so far; the config's own values as a dashed line.

    Args:
        trials: finished ones, at least one completed.
        metric: its name.
        maximise: whether more is better.
        theme: colours.
    """
    figure, axes = new_figure(5.4, 2.6, theme)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    stopped = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    for trial in done:
        if trial.user_attrs.get("origin") == "defaults":
            axes.axhline(trial.values[0], color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)), label="defaults")
    last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in stopped]
    axes.plot(
        [t.number for t in stopped], last, "o", color=theme.prior, mfc="none", markersize=5, label="stopped early"
    )
    values = [trial.values[0] for trial in done]
    numbers = [trial.number for trial in done]
    axes.plot(numbers, values, "o", color=theme.encoder, markersize=5, label="completed")
    best = np.maximum.accumulate(values) if maximise else np.minimum.accumulate(values)
    axes.step(numbers, best, where="post", color=theme.sampler, linewidth=1.6, label="best so far")
    shown = [*values, *last]
    if min(shown) > 0 and max(shown) > 10 * min(shown):
        axes.set_yscale("log")
    axes.set_xlabel("trial", fontsize=9, color=theme.muted)
    axes.set_ylabel(metric, fontsize=9, color=theme.muted)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9, labelcolor=theme.ink)
    return png_bytes(figure)


def parallel_coordinates(
    trials: Sequence[FrozenTrial], names: Sequence[str], metric: str, maximise: bool, theme: Theme = LIGHT
) -> bytes:
    """One line per completed trial through its values, the better the stronger; the best in the sampler's colour."""
    figure, axes = new_figure(6.4, 3.2, theme)
    axes.grid(False)
    ordered = sorted(trials, key=lambda trial: trial.values[0], reverse=not maximise)  # the best is drawn last
    scores = [trial.values[0] for trial in ordered]
    low, high = min(scores), max(scores)
    for rank, trial in enumerate(ordered):
        path = [_position(trial, name) for name in names] + [(trial.values[0] - low) / (high - low or 1.0)]
        best = rank == len(ordered) - 1
        axes.plot(
            range(len(path)),
            path,
            color=theme.sampler if best else theme.encoder,
            alpha=1.0 if best else 0.15 + 0.6 * (rank + 1) / len(ordered),
            linewidth=2.4 if best else 1.2,
        )
    ends = [_ends(ordered[0], name) for name in names] + [(f"{low:.4g}", f"{high:.4g}")]
    for column, (bottom, top) in enumerate(ends):
        axes.axvline(column, color=theme.muted, linewidth=0.8)
        for height, text, side in ((-0.04, bottom, "top"), (1.04, top, "bottom")):
            axes.text(column, height, text, ha="center", va=side, fontsize=8, color=theme.muted)
    labels = [name.replace("bandwidths.", "").split(".", 1)[-1].replace("_", "\n") for name in names] + [metric]
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", pad=14, length=0)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_ylim(-0.14, 1.14)
    return png_bytes(figure)


def importances(shares: dict[str, float], theme: Theme = LIGHT) -> bytes:
    """One bar per searched key: its share of the variance of the first metric.

    Example:
        >>> importances({"sampler.particles": 0.7, "sampler.learning_rate": 0.3})[1:4]
        b'PNG'
    """
    figure, axes = new_figure(5.4, 0.8 + 0.28 * len(shares), theme)
    axes.barh(range(len(shares)), list(shares.values()), color=theme.encoder, height=0.6)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.set_xlabel("importance (fANOVA)", fontsize=9, color=theme.muted)
    axes.grid(False, axis="y")
    return png_bytes(figure)


def front(trials: Sequence[FrozenTrial], best: set[int], metrics: Sequence[str], theme: Theme = LIGHT) -> bytes:
    """The first two metrics against each other, trials of the Pareto front in the sampler's colour."""
    figure, axes = new_figure(4.0, 3.2, theme)
    for trial in trials:
        chosen = trial.number in best
        axes.plot(*trial.values[:2], "o", color=theme.sampler if chosen else theme.prior, markersize=6)
        if chosen:
            axes.annotate(str(trial.number), trial.values[:2], xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel(metrics[0], fontsize=9, color=theme.muted)
    axes.set_ylabel(metrics[1], fontsize=9, color=theme.muted)
    return png_bytes(figure)


def search_pictures(study: optuna.Study, metrics: Sequence[str]) -> list[Picture]:
    """The pictures that a study has enough trials for."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    maximise = study.directions[0] == StudyDirection.MAXIMIZE
    names = sorted({name for trial in done for name in trial.params})
    best = (max if maximise else min)(trial.values[0] for trial in done)
    alt = f"{metrics[0]} of {len(trials)} trials, {len(done)} of them completed; the best has {best:.4g}"
    pictures = [Picture.both(partial(history, trials, metrics[0], maximise), "history", alt)]
    alt = f"Values of {', '.join(names)} and {metrics[0]} of {len(done)} completed trials"
    draw: Any = partial(parallel_coordinates, done, names, metrics[0], maximise)
    pictures.append(Picture.both(draw, "parallel", alt))
    if len(done) >= _LEAST_TRIALS and len({trial.values[0] for trial in done}) > 1:
        shares = get_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), target=lambda trial: trial.values[0]
        )
        alt = (
            "Importance for " + metrics[0] + ": " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        )
        pictures.append(Picture.both(partial(importances, shares), "importances", alt))
    if len(metrics) > 1:
        numbers = {trial.number for trial in study.best_trials}
        alt = f"{metrics[0]} against {metrics[1]}; trials {sorted(numbers)} are on the Pareto front"
        pictures.append(Picture.both(partial(front, done, numbers, metrics), "front", alt))
    return pictures
