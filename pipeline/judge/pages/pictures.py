"""What the pictures of all pages are made of: colours, figures in the page's style, image grids, PNG bytes.

Figures are built with matplotlib's objects on the Agg canvas: no pyplot, so no global state and no display. The same
data give the same bytes. Colours are those of Okabe and Ito, told apart with any colour vision.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # a run that is up to date need not wait for what draws
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "Picture", "Theme", "image_grid", "log_ticks", "new_axes", "new_figure", "png_bytes"]

_DPI = 200  # pictures are small in inches, so that their text stays readable on a phone


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
    def both(cls, draw: Callable[..., bytes], name: str, alt: str) -> Picture:
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    # The default metadata name matplotlib's version, which would change the bytes of an unchanged picture.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
