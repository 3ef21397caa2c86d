"""The page of a study of autoencoders and latent generators.

The page is one self-contained file. Its only script sorts the table; its Content-Security-Policy names that hash.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import stdev
from typing import Any, NamedTuple

from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ldcvae.variants import AUTOENCODERS, GENERATORS
from pipeline.compare.cells import DECODER
from pipeline.compare.claims import chosen_net, winner
from pipeline.judge.pages.pictures import DARK, LIGHT, Picture, Theme, log_ticks, new_axes, new_figure, png_bytes
from pipeline.judge.pages.plots import dots
from pipeline.judge.pages.render import Entry, render

__all__ = ["COLUMNS", "Line", "columns_of", "lines_of", "make_page", "speed", "tried"]


class _Column(NamedTuple):
    """A column of a table; `better` is "low", "high", or empty where neither end is best; `decimals` at most."""

    key: str
    heading: str
    better: str
    decimals: int


COLUMNS = (
    _Column("fd", "FD", "low", 3),
    _Column("fd_second", "FD, second", "low", 3),
    _Column("kid", "KID", "low", 2),
    _Column("precision", "Precision", "high", 3),
    _Column("recall", "Recall", "high", 3),
    _Column("density", "Density", "high", 3),
    _Column("coverage", "Coverage", "high", 3),
    _Column("mmd2", "Latent MMD²", "low", 3),
    _Column("sliced_wasserstein", "Latent SW", "low", 3),
    _Column("nearest", "Nearest train / held-out", "", 3),
    _Column("latents_per_s", "Latents/s", "high", 0),
    _Column("passes", "Passes", "", 0),
    _Column("tried", "Settings tried", "", 0),
    _Column("temperature", "Temperature", "", 2),
    _Column("seconds", "Training, s", "low", 1),
    _Column("peak_mb", "Peak, MB", "low", 0),
)
_ALWAYS = {column.key for column in COLUMNS} - {"fd_second", "temperature"}
_AUTOENCODER = (
    _Column("mse", "MSE", "low", 5),
    _Column("fd", "FD", "low", 3),
    _Column("seconds", "Training, s", "low", 1),
    _Column("peak_mb", "Peak, MB", "low", 0),
    _Column("passes", "Decoder passes", "", 0),
)
_MARKERS = (*"os^vD<>dp", (4, 1, 0), (4, 1, 45), "H")  # a generator has its own, as colours come again
_NET_MARKERS = "P*X8p"  # the nets all have the sampler's colour
_DASHES = ((4, 3), (1, 2))  # of the bounds
_COLOURS = {  # Okabe and Ito's, those that show on the page's background and are not near the sampler nets'
    LIGHT: ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#5f6772"),
    DARK: ("#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#9aa3af"),
}
_FAR = 4.0  # where the largest distance is so many times the least, the axis is logarithmic


class Line(NamedTuple):
    """A row of a table: its record, column -> number, text and whether it is the column's best."""

    record: Mapping[str, Any]
    values: dict[str, float | None]
    cells: dict[str, Entry]
    best: set[str]


def tried(record: Mapping[str, Any]) -> int:
    """Among how many settings validation images chose a row's."""
    return max(1, len(record.get("candidates") or []))


def _figure(record: Mapping[str, Any], key: str) -> tuple[float | None, float | None]:
    """The mean over seeds and the spread; one seed has none."""
    if key == "passes":
        return record.get("passes", record.get("decoder_passes")), None
    if key == "tried":
        return tried(record) if "candidates" in record else None, None
    values = record.get("values") or {}
    if key != "nearest":
        several = len(values.get(key) or []) > 1
        return record["figures"].get(key), (record.get("spread") or {}).get(key) if several else None
    train, held_out = record["figures"].get("nearest_train"), record["figures"].get("nearest_held_out")
    pairs = zip(values.get("nearest_train") or [], values.get("nearest_held_out") or [], strict=False)
    ratios = [a / b for a, b in pairs if a is not None and b]
    return train / held_out if train is not None and held_out else None, stdev(ratios) if len(ratios) > 1 else None


def _text(value: float | None, factor: int, decimals: int, digits: int | None) -> str:
    """The number times the factor, cut to `digits` significant ones where they are given; empty without a number."""
    if value is None:
        return ""
    if digits and value:
        value = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value * factor:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def lines_of(records: Sequence[Mapping[str, Any]], columns: Sequence[_Column]) -> tuple[list[Line], dict[str, int]]:
    """The rows of a table, and the factor by which each column's texts are multiplied."""
    lines = [Line(record, {}, {}, set()) for record in records]
    factors = {}
    for key, _, better, most in columns:
        found = [_figure(record, key) for record in records]
        sizes = sorted(abs(mean) for mean, _ in found if mean)
        typical = sizes[len(sizes) // 2] if sizes else 1.0
        # MMD² always, so that tables compare; KID and a second distance where the features make them as small.
        small = key in ("kid", "fd_second") and typical < 0.1
        factor = factors[key] = 1000 if key == "mmd2" or small else 1
        # By the typical row: with one generator far off, the others' figures would lose the digits they differ in.
        decimals = max(0, min(most, 3 - math.floor(math.log10(typical * factor))))
        means = {index: mean for index, (mean, _) in enumerate(found) if mean is not None}
        judged = [mean for index, mean in means.items() if not records[index].get("bound")]
        best = (min if better == "low" else max)(judged, default=None) if better else None
        for line, (mean, spread) in zip(lines, found, strict=True):
            digits = (3, 2) if key == "latents_per_s" else (None, None)
            texts = (_text(x, factor, decimals, n) for x, n in zip((mean, spread), digits, strict=True))
            line.values[key], line.cells[key] = mean, Entry(next(texts) or "\N{EN DASH}", next(texts))
            if mean is not None and mean == best and not line.record.get("bound"):
                line.best.add(key)
    return lines, factors


def columns_of(records: Sequence[Mapping[str, Any]]) -> list[_Column]:
    """The columns of these rows: without those of a second extractor and of temperatures where there was none.

    Example:
        >>> "fd_second" in [column.key for column in columns_of([{"figures": {"fd": 1.0}}])]
        False
    """
    there = {key for key in ("fd_second", "temperature") for one in records if one["figures"].get(key) is not None}
    return [column for column in COLUMNS if column.key in there | _ALWAYS]


def _best(lines: Sequence[Line]) -> Line | None:
    """The row with the lowest FD that is no bound."""
    judged = [line for line in lines if line.values["fd"] is not None and not line.record["bound"]]
    return min(judged, key=lambda line: line.values["fd"] or 0.0, default=None)


def _gibbs(name: str) -> bool:
    """Whether an autoencoder is LDC-VAE itself; one of a plugin that is not loaded is not."""
    record = AUTOENCODERS.get(name.removesuffix(DECODER))
    return record is not None and record.gibbs


def _nets() -> dict[str, str]:
    """Marker of every sampler net."""
    names = [name for name, record in GENERATORS.items() if record.kind in ("net", "own")]
    return dict(zip(names, itertools.cycle(_NET_MARKERS), strict=False))


def _focus(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The LDC-VAE autoencoders; without one the first, so that the page has something to show."""
    ours = [one for one in results["autoencoders"] if _gibbs(one["name"])]
    return ours or list(results["autoencoders"][:1])


def _marks(names: Mapping[str, str], theme: Theme) -> dict[str, dict[str, Any]]:
    """Marker and colour of every label, in all panels and in the legend."""
    marks: dict[str, dict[str, Any]] = {}
    nets, others = _nets(), 0
    for label, generator in names.items():
        if generator in nets:
            size = 12 if nets[generator] == "*" else 9
            mark = {"marker": nets[generator], "color": theme.sampler, "markersize": size, "zorder": 5}
        else:
            colour = _COLOURS[theme][others % len(_COLOURS[theme])]
            mark = {"marker": _MARKERS[others % len(_MARKERS)], "color": colour, "markersize": 8}
            others += 1
        marks[label] = mark | {"linestyle": "none", "markeredgecolor": theme.surface, "markeredgewidth": 0.6}
    return marks


def speed(
    panels: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[str, str], label: str, theme: Theme = LIGHT
) -> bytes:
    """Quality against speed: a panel for each autoencoder, a colour and marker for each generator.

    Args:
        panels: an autoencoder's label -> its rows of `results.json`; a row without FD or latents/s is left out. The
            bounds are no generators and have dashed lines at their FD.
        names: a generator's label -> its key, in the order of the legend; bounds are not among them.
        label: of the distance.
        theme: colours.

    Example:
        >>> row = {"label": "GMM", "bound": False, "figures": {"fd": 14.0, "latents_per_s": 5e6}}
        >>> speed({"VAE": [row]}, {"GMM": "gmm"}, "FD")[1:4]
        b'PNG'
    """
    columns = min(2, len(panels))
    grid = math.ceil(len(panels) / columns), columns
    bounds = list(dict.fromkeys(row["label"] for rows in panels.values() for row in rows if row["bound"]))
    dashed: dict[str, dict[str, Any]] = {
        label: {"color": theme.muted, "linewidth": 1.2, "linestyle": (0, dashes)}
        for label, dashes in zip(bounds, itertools.cycle(_DASHES), strict=False)
    }
    marks = _marks(names, theme)
    height = (3.2 if columns == 1 else 2.7) * grid[0] + 0.22 * math.ceil((len(names) + 1) / 2) + 0.4
    figure, first = new_figure(5.4, height, theme, *grid, 1)
    distances = []
    for index, (title, rows) in enumerate(panels.items(), start=1):
        axes = first if index == 1 else new_axes(figure, theme, *grid, index, sharex=first, sharey=first)
        axes.set_title(title, loc="left", fontsize=11, color=theme.ink)
        axes.tick_params(labelsize=10, labelleft=index % columns == 1 or columns == 1)
        axes.tick_params(labelbottom=index + columns > len(panels))
        for row in rows:
            fd, rate = row["figures"].get("fd"), row["figures"].get("latents_per_s")
            if fd is None or not (rate or row["bound"]):
                continue
            distances.append(fd)
            if row["bound"]:
                axes.axhline(fd, **dashed[row["label"]])
            else:
                axes.errorbar(rate, fd, _figure(row, "fd")[1], elinewidth=1.2, **marks[row["label"]])
    first.set_xscale("log")
    first.xaxis.set_minor_locator(NullLocator())
    if min(distances, default=0.0) > 0 and max(distances) > _FAR * min(distances):
        first.set_yscale("log")
        log_ticks(first.yaxis)
    figure.supxlabel("latents per second", fontsize=11, color=theme.muted)
    figure.supylabel(label, fontsize=11, color=theme.muted)
    legend = [Line2D([], [], label=label, **mark) for label, mark in marks.items()]
    legend += [
        Line2D([], [], label=f"bound: {label.removeprefix('encoder ')}", **line) for label, line in dashed.items()
    ]
    figure.legend(handles=legend, loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=theme.ink)
    return png_bytes(figure)


def _pictures(results: Mapping[str, Any], focus: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
    """Quality against speed, and the distances of each autoencoder in focus; without figures there is no picture."""
    figure, rows = results["extractor"]["figure"], results["rows"]
    labels = {one["name"]: one["label"] for one in results["autoencoders"]}
    pictures: dict[str, Picture] = {}
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["figures"].get("fd") is not None:
            panels.setdefault(labels[row["autoencoder"]], []).append(row)
    # By label: VampPrior's own prior, for one, is no N(0, I).
    names = {row["label"]: row["generator"] for row in rows if not row["bound"]}
    if panels:
        draw = partial(speed, panels, names, f"{figure}, lower is better")
        alt = f"{figure} against latents per second of {len(names)} generators on {', '.join(panels)}"
        pictures["speed"] = Picture.both(draw, "speed", alt)
    for one in (one for one in focus if one["label"] in panels):
        own = panels[one["label"]]
        draws = {row["label"]: (row.get("values") or {}).get("fd") or [row["figures"]["fd"]] for row in own}
        bound = next((row["figures"]["fd"] for row in own if row["bound"]), None)
        net = (chosen_net(own) or {}).get("label")
        alt = f"{figure} on {one['label']}: " + ", ".join(f"{row['label']} {row['figures']['fd']:.4g}" for row in own)
        ends = [end(map(end, draws.values())) for end in (min, max)]
        draw = partial(dots, draws, net, bound, f"{figure}, lower is better", 0 < _FAR * ends[0] < ends[1])
        pictures[one["name"]] = Picture.both(draw, f"distances-{one['name']}", alt)
    return pictures


def make_page(results: Mapping[str, Any], grids: Mapping[str, bytes]) -> dict[str, bytes]:
    """The page of a study and its pictures.

    Args:
        results: content of `compare/results.json`.
        grids: a row's `grid` -> PNG bytes; a row whose grid is missing has no samples on the page.

    Returns:
        Path under the run's folder -> content: `compare/index.html` and `compare/*.png`.

    Raises:
        KeyError: if `results` lacks a key of its format.
    """
    focus, labels = _focus(results), {one["name"]: one["label"] for one in results["autoencoders"]}
    first, undecided = winner(results["rows"], labels) if not results.get("doubts") else (None, "")
    # The floor is measured as a generator would be; like a bound it is no candidate for the best.
    columns = columns_of(results["rows"])
    (*lines, floor), factors = lines_of([*results["rows"], {"figures": results["floor"], "bound": True}], columns)
    pictures = _pictures(results, focus)
    of: dict[str, list[Line]] = {one["name"]: [] for one in results["autoencoders"]}
    for line in lines:
        of[line.record["autoencoder"]].append(line)

    def sample(row: Mapping[str, Any]) -> Picture | None:
        png = grids.get(row["grid"])
        return None if png is None else Picture("", png, None, f"A grid of images generated by {row['label']}")

    content = {
        **{"results": results, "columns": columns, "encoder_columns": _AUTOENCODER},
        **{"lines": lines, "floor": floor, "factors": factors, "of": of, "focus": focus, "pictures": pictures},
        "encoders": lines_of(results["autoencoders"], _AUTOENCODER)[0],
        "labels": labels,
        "generators": {row["generator"]: row["label"] for row in results["rows"]},
        "winner": next((line for line in lines if line.record is first), None),
        "undecided": undecided,
        "best": [best for best in map(_best, of.values()) if best],
        "sample": sample,
    }
    files = {f"compare/{name}": png for picture in pictures.values() for name, png in picture.files.items()}
    return {"compare/index.html": render(content, "compare.html.j2"), **files}
