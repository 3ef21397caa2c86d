"""The report's plots, each as PNG bytes: training curves, the latent plane, distances."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeline.judge.pages.pictures import LIGHT, Picture, Theme, new_figure, png_bytes

__all__ = ["curve", "plane", "training_curves"]

_PANELS = {  # phase -> key in train/metrics.jsonl -> title
    "autoencoder": {
        "loss": "Loss",
        "reconstruction": "Reconstruction loss",
        "kl": "KL from N(0, I)",
        "stein": "Stein term",
        "validation_mse": "Validation MSE",
    },
    "decoder": {
        "loss": "Loss",
        "reconstruction": "Reconstruction loss",
        "perceptual": "Perceptual distance",
        "adversarial": "Adversarial loss",
        "discriminator": "Discriminator loss",
        "real_score": "Score of real images",
        "fake_score": "Score of decoded images",
        "validation_mse": "Validation MSE",
    },
    "sampler": {
        "field_rms": "Field RMS",
        "validation_mmd2": "Validation latent MMD²",
        "validation_sliced_wasserstein": "Validation latent SW",
        "variance_ratio": "Variance ratio",
    },
}


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
    from matplotlib.ticker import MaxNLocator

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
