"""The report's pictures, each as PNG bytes: image grids, training curves, the latent plane, distances.

Figures are built with matplotlib's objects on the Agg canvas: no pyplot, so no global state and no display. The same
data give the same bytes. Colours are those of Okabe and Ito, told apart with any colour vision.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from PIL import Image

__all__ = [
    "DARK",
    "LIGHT",
    "Picture",
    "Theme",
    "curve",
    "dots",
    "image_grid",
    "log_ticks",
    "new_axes",
    "new_figure",
    "plane",
    "png_bytes",
    "training_curves",
]

_DPI = 200  # pictures are small in inches, so that their text stays readable on a phone
_PANELS = {  # phase -> key in train/metrics.jsonl -> title
    "autoencoder": {
        "loss": "Loss",
        "reconstruction": "Reconstruction loss",
        "kl": "KL from N(0, I)",
        "stein": "Stein term",
        "validation_mse": "Validation MSE",
    },
    "sampler": {
        "field_rms": "Field RMS",
        "validation_mmd2": "Validation latent MMD²",
        "validation_sliced_wasserstein": "Validation latent SW",
        "variance_ratio": "Variance ratio",
    },
}


class Theme(NamedTuple):
    """Colours of a figure; `surface` is the page's own background."""

    surface: str
    ink: str
    muted: str
    encoder: str
    sampler: str
    prior: str


LIGHT = Theme("#ffffff", "#1c1f24", "#5f6772", "#0072b2", "#d55e00", "#9aa1ab")
DARK = Theme("#14161a", "#e6e8eb", "#9aa3af", "#56b4e9", "#e69f00", "#8b94a3")


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        name: of the file, without `.png`; the dark variant is `<name>-dark.png`.
        light: PNG bytes.
        dark: PNG bytes for dark pages, or None where one picture serves both.
        alt: what it shows, in words.
    """

    name: str
    light: bytes
    dark: bytes | None
    alt: str

    @classmethod
    def both(cls, draw: Callable[..., bytes], name: str, alt: str) -> "Picture":
        """The light and the dark variant: `draw(theme=…)`."""
        return cls(name, draw(theme=LIGHT), draw(theme=DARK), alt)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels: with them the browser keeps the place before it has the picture."""
        return Image.open(io.BytesIO(self.light)).size

    @property
    def files(self) -> dict[str, bytes]:
        """File name -> content."""
        return {f"{self.name}.png": self.light} | ({f"{self.name}-dark.png": self.dark} if self.dark else {})


def image_grid(images: np.ndarray, columns: int, pair_rows: bool = False, gap: int = 4) -> bytes:
    """Images side by side, small ones enlarged by a whole number, so that their pixels stay square and sharp.

    Args:
        images: (N, C, H, W) in [0, 1], C 1 or 3; row by row, the last row may be short.
        columns: images per row.
        pair_rows: set every two rows apart from the next two.
        gap: transparent pixels between images.

    Raises:
        ValueError: if there are no images or C is neither 1 nor 3.

    Example:
        >>> Image.open(io.BytesIO(image_grid(np.zeros((4, 1, 8, 8)), columns=2))).size
        (132, 132)
    """
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (N, C, H, W) with N > 0 and C 1 or 3, got {images.shape}")
    scale = max(1, round(64 / max(images.shape[2:])))
    pixels = (images.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    pixels = pixels.repeat(scale, 1).repeat(scale, 2)
    count, height, width, channels = pixels.shape
    rows = math.ceil(count / columns)
    tops = [row * (height + gap) + (row // 2 * 4 * gap if pair_rows else 0) for row in range(rows)]
    canvas = np.zeros((tops[-1] + height, columns * (width + gap) - gap, channels + 1), np.uint8)
    for index, image in enumerate(pixels):
        top, left = tops[index // columns], index % columns * (width + gap)
        canvas[top : top + height, left : left + width, :-1] = image
        canvas[top : top + height, left : left + width, -1] = 255  # opaque
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def new_axes(figure: Figure, theme: Theme, *position: int, **sharing: Any) -> Axes:
    """Axes in the page's style.

    Args:
        figure: where to put them.
        theme: colours.
        position: rows, columns and index, as `Figure.add_subplot` takes them; the whole figure when missing.
        sharing: `sharex` and `sharey`, other axes.

    Example:
        >>> figure, axes = new_figure(4.0, 2.0, LIGHT)
        >>> new_axes(figure, LIGHT, 1, 2, 2, sharey=axes).get_ylim() == axes.get_ylim()
        True
    """
    axes = figure.add_subplot(*position, facecolor=theme.surface, **sharing)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.muted)
    axes.tick_params(which="both", color=theme.muted, labelcolor=theme.ink, labelsize=9, length=3)
    axes.grid(True, color=theme.muted, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def new_figure(width: float, height: float, theme: Theme, *position: int) -> tuple[Figure, Axes]:
    """A figure without global state, and its axes in the page's style; `png_bytes` makes the picture of it.

    Args:
        width: in inches.
        height: in inches.
        theme: colours.
        position: of the axes, as `new_axes` takes it, where more are to follow.

    Example:
        >>> figure, axes = new_figure(4.0, 2.0, LIGHT)
        >>> _ = axes.plot([0, 1])
        >>> Image.open(io.BytesIO(png_bytes(figure))).size
        (800, 400)
    """
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor=theme.surface)
    FigureCanvasAgg(figure)
    return figure, new_axes(figure, theme, *position)


def log_ticks(axis: Axis) -> None:
    """Ticks 1, 2, 3, 5, 10, … as plain numbers, for an axis that is already logarithmic and spans few decades.

    Example:
        >>> figure, axes = new_figure(4.0, 2.0, LIGHT)
        >>> axes.set(xscale="log", xlim=(9, 60)) and log_ticks(axes.xaxis)
        >>> [tick for tick in axes.get_xticks() if 9 < tick < 60]
        [np.float64(10.0), np.float64(20.0), np.float64(30.0), np.float64(50.0)]
    """
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    # The default metadata name matplotlib's version, which would change the bytes of an unchanged picture.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def curve(
    steps: Sequence[float], values: Sequence[float], title: str, target: float | None = None, theme: Theme = LIGHT
) -> bytes:
    """One quantity against the training step; on a log axis when the largest value is over 30 times the least.

    Args:
        steps: where the values were logged.
        values: as many.
        title: what it is.
        target: value to aim at, drawn as a dashed line.
        theme: colours.

    Example:
        >>> curve([1, 2, 3], [0.5, 0.2, 0.1], "Validation MSE")[1:4]
        b'PNG'
    """
    figure, axes = new_figure(2.6, 2.0, theme)
    if target is not None:
        axes.axhline(target, color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)))
    markers = "o" if len(steps) < 20 else None
    axes.plot(steps, values, color=theme.encoder, linewidth=1.6, marker=markers, markersize=3.5)
    if min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_title(title, loc="left", fontsize=10, color=theme.ink)
    axes.set_xlabel("step", fontsize=9, color=theme.muted)
    return png_bytes(figure)


def plane(
    reference: np.ndarray,
    draws: np.ndarray,
    names: tuple[str, str],
    colour: str,
    explained: Sequence[float],
    limits: Sequence[tuple[float, float]],
    theme: Theme = LIGHT,
) -> bytes:
    """Two sets of projected latents over each other; with one dimension their histograms.

    Args:
        reference: (N, k) coordinates, k 1 or 2.
        draws: (M, k) coordinates.
        names: of the two sets.
        colour: the theme's colour of the draws, by name; the reference has the encoder's.
        explained: share of variance along each axis.
        limits: of each axis, so that several pictures compare.
        theme: colours of the rest.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(2, 50, 2))
        >>> plane(z[0], z[1], ("a", "b"), "sampler", (0.6, 0.4), [(-4, 4), (-4, 4)])[1:4]
        b'PNG'
    """
    figure, axes = new_figure(4.0, 3.9, theme)
    colours = (theme.encoder, getattr(theme, colour))
    for name, filled in zip(names, colours, strict=True):
        axes.plot([], [], "o", color=filled, markersize=6, label=name)
    if reference.shape[1] == 1:
        bins = np.linspace(*limits[0], 60).tolist()
        for points, filled in zip((reference, draws), colours, strict=True):
            axes.hist(points[:, 0], bins, density=True, color=filled, alpha=0.55)
        axes.set_ylabel("density", fontsize=9, color=theme.muted)
    else:
        # Drawn in one shuffled order: with one set above the other, the upper would hide the lower.
        points = np.concatenate([reference, draws])
        colour_of = np.repeat(np.array(colours), [len(reference), len(draws)])
        order = np.random.default_rng(0).permutation(len(points))
        axes.scatter(points[order, 0], points[order, 1], c=colour_of[order], s=7, alpha=0.6, linewidths=0)
        axes.set_ylim(limits[1])
        axes.set_ylabel(f"PC 2 ({explained[1]:.0%} of variance)", fontsize=9, color=theme.muted)
    axes.set_xlim(limits[0])
    axes.set_xlabel(f"PC 1 ({explained[0]:.0%} of variance)", fontsize=9, color=theme.muted)
    style = {"frameon": False, "fontsize": 10, "labelcolor": theme.ink, "handletextpad": 0}
    figure.legend(loc="outside upper left", ncols=2, **style)
    return png_bytes(figure)


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


def training_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Picture]]:
    """A picture of every quantity that was logged, by phase.

    Args:
        history: records of `train/metrics.jsonl`; every key but `phase` and `step` may be missing or null.

    Example:
        >>> history = [{"phase": "sampler", "step": step, "field_rms": 5 / step} for step in (10, 20)]
        >>> training_curves(history)["sampler"][0].alt
        'Field RMS over 20 steps: from 0.5 to 0.25'
    """
    pictures: dict[str, list[Picture]] = {}
    for phase, panels in _PANELS.items():
        for key, title in panels.items():
            lines = [line for line in history if line["phase"] == phase and line.get(key) is not None]
            if not lines:
                continue
            steps, values = [line["step"] for line in lines], [line[key] for line in lines]
            draw = partial(curve, steps, values, title, target=1.0 if key == "variance_ratio" else None)
            alt = f"{title} over {steps[-1]:,} steps: from {values[0]:.3g} to {values[-1]:.3g}"
            name = f"training-{phase}-{key.replace('_', '-')}"
            pictures.setdefault(phase, []).append(Picture.both(draw, name, alt))
    return pictures
