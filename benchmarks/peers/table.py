"""The table of the peers' figures beside this project's own, from figures alone; judge.py measures them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from exchange import LABELS, SAMPLERS, find

__all__ = ["difference", "lines", "markdown", "rows"]

_NAMES = {
    "normal": "N(0, I)",
    "gmm": "GMM",
    "vamp": "VAMPSampler",
    "vamp_prior": "own prior",
    "reconstruction": "reconstruction",
}
_FIGURES = ("fd", "kid", "precision", "recall", "density", "coverage")

Series = Mapping[str, Sequence[float]]


def difference(theirs: Sequence[float], ours: Sequence[float]) -> float | None:
    """Theirs less ours, in units of the root mean square of the two spreads; None without a spread.

    Example:
        >>> round(difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]), 3)
        2.0
        >>> difference([3.0], [1.0]) is None
        True
    """
    spreads = [_spread(values) for values in (theirs, ours)]
    unit = math.sqrt(statistics.fmean(spread**2 for spread in spreads))
    return (statistics.fmean(theirs) - statistics.fmean(ours)) / unit if unit > 0.0 and min(spreads) > 0.0 else None


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _beside(theirs: Series, ours: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every figure of a row: mean, spread and values of both sides, and the difference."""
    content = {}
    for figure, values in theirs.items():
        own = [value for value in ((ours or {}).get("values", {}).get(figure) or []) if value is not None]
        content[figure] = {
            "theirs": _side(values),
            "ours": _side(own) if own else None,
            "difference": difference(values, own) if own else None,
        }
    return content


def _side(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "spread": _spread(values), "values": list(values)}


def rows(
    found: Mapping[str, Series], spec: Mapping[str, Any], results: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The table: one row for each model and sampler, and one for each model's reconstructions.

    Args:
        found: `<model>/<sampler>` -> figure -> one value a seed; `<model>/reconstruction` for its reconstructions.
        spec: of the peers.
        results: content of `compare/results.json`, or None.
    """
    results = results or {"autoencoders": [], "rows": []}
    table = []
    for name, label in LABELS.items():
        model = find(results["autoencoders"], "name", name)
        drawn = [row for row in results["rows"] if model is not None and row["autoencoder"] == model["name"]]
        for sampler in (*SAMPLERS[name], "reconstruction"):
            ours = model if sampler == "reconstruction" else find(drawn, "generator", sampler)
            settings = {"theirs": spec["settings"].get(name), "ours": (model or {}).get("setting")}
            table.append(
                {"model": name, "sampler": sampler, "label": f"{label}, {_NAMES[sampler]}", "settings": settings}
                | {"figures": _beside(found[f"{name}/{sampler}"], ours)}
            )
    return table


def _number(side: Mapping[str, Any] | None, digits: int) -> str:
    if side is None:
        return "–"
    return f"{side['mean']:.{digits}f}" + (f" ± {side['spread']:.{digits}f}" if len(side["values"]) > 1 else "")


def lines(content: Mapping[str, Any], figure: str, reconstruction: bool = False) -> list[list[str]]:
    """The table of one figure, of samples or of reconstructions: label, theirs, ours, difference."""
    digits, table = 5 if figure == "mse" else 3, []
    for row in content["rows"]:
        if (row["sampler"] == "reconstruction") == reconstruction:
            values = row["figures"][figure]
            units = "–" if values["difference"] is None else f"{values['difference']:+.1f}"
            sides = [_number(values[side], digits) for side in ("theirs", "ours")]
            table.append([row["label"], *sides, units])
    return table


def markdown(content: Mapping[str, Any]) -> str:
    """The whole of `peers.json` as tables."""
    spec, figure = content["spec"], content["extractor"]["figure"]
    text = [
        f"# {spec['name']}: pythae against this project\n",
        f"Seeds {spec['seeds']}, {spec['epochs']} epochs, {spec['num_images']:,} images a draw against "
        f"{content['num_reference']:,} of {spec['split']}. ±: standard deviation over seeds; the difference, theirs "
        "less ours, is in units of the two spreads' root mean square. "
        f"pythae: {spec['settings']}, {spec['components']} components, {spec['keep']} epoch's weights.\n",
    ]
    text += [f"{content['note']}.\n"] if content["note"] else []
    titles = {"fd": f"{figure} of samples", "mse": "MSE of reconstructions"}
    tables = [(name, False) for name in _FIGURES] + [("mse", True), ("fd", True)]
    for name, reconstruction in tables:
        title = f"{figure} of reconstructions" if (name, reconstruction) == ("fd", True) else titles.get(name, name)
        text += [f"## {title}\n", "| | pythae | ours | difference |", "|:--|--:|--:|--:|"]
        text += ["| " + " | ".join(line) + " |" for line in lines(content, name, reconstruction)] + [""]
    return "\n".join(text)
