"""Plots that several pages show."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.judge.pages.pictures import LIGHT, Theme, log_ticks, new_figure, png_bytes

__all__ = ["dots"]


def dots(
    values: Mapping[str, Sequence[float]],
    highlight: str | None,
    bound: float | None,
    label: str,
    log: bool = False,
    theme: Theme = LIGHT,
) -> bytes:
    """One row per generator: every draw as a dot, their mean as a tick; a dashed line at the bound.

    Args:
        values: name -> one value per draw.
        highlight: name to draw in the sampler's colour.
        bound: where the dashed line stands; None for no line.
        label: of the axis.
        log: whether the axis is logarithmic; values must be positive.
        theme: colours.

    Example:
        >>> dots({"N(0, I)": [29.0, 30.0], "sampler": [15.0, 15.2]}, "sampler", 14.5, "FD")[1:4]
        b'PNG'
    """
    figure, axes = new_figure(5.4, 0.6 + 0.28 * len(values), theme)
    if bound is not None:
        axes.axvline(bound, color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)))
    for row, (name, draws) in enumerate(values.items()):
        colour = theme.sampler if name == highlight else theme.encoder
        axes.plot(draws, [row] * len(draws), "o", color=colour, alpha=0.65, markersize=6, markeredgewidth=0)
        axes.plot(np.mean(draws), row, "|", color=colour, markersize=15, markeredgewidth=2)
    if log:
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlabel(label, fontsize=9, color=theme.muted)
    axes.grid(False, axis="y")
    return png_bytes(figure)
