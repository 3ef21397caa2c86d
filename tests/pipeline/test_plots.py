"""The pictures: decoded again, they must show the data they were drawn from."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.judge.pages.pictures import DARK, LIGHT, image_grid
from pipeline.judge.pages.plots import dots
from pipeline.report.plots import curve, plane, training_curves


def pixels(png, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(png)).convert(mode)).astype(int)


def close_to(picture, colour, tolerance=40):
    """How many pixels have about this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture - wanted).max(-1) <= tolerance).sum())


def test_image_grid_puts_every_image_in_its_place():
    images = np.linspace(0, 1, 6)[:, None, None, None] * np.ones((6, 1, 32, 32))
    picture = pixels(image_grid(images, columns=3, gap=2), "LA")
    assert picture.shape == (2 * 64 + 2, 3 * 64 + 2 * 2, 2)  # 32 pixels are enlarged twice
    np.testing.assert_allclose(picture[32::66, 32::66, 0].ravel(), np.linspace(0, 255, 6), atol=1)
    transparent = picture[..., 1] == 0
    assert transparent[64:66].all()
    assert transparent.sum() == 130 * 196 - 6 * 64 * 64


def test_image_grid_keeps_colour_and_leaves_the_rest_of_a_short_row_empty():
    images = np.zeros((3, 3, 64, 64))
    images[2, 0] = 1
    picture = pixels(image_grid(images, columns=2, gap=0), "RGBA")
    assert picture[96, 32].tolist() == [255, 0, 0, 255]
    assert picture[96, 96, 3] == 0


def test_pair_rows_are_set_apart():
    picture = pixels(image_grid(np.ones((4, 1, 64, 64)), columns=1, gap=1, pair_rows=True), "LA")
    assert np.flatnonzero(picture[:, 0, 1] == 0).tolist() == [64, *range(129, 134), 198]


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (4, 2, 8, 8), (4, 8, 8)])
def test_image_grid_refuses_what_is_no_image(shape):
    with pytest.raises(ValueError, match="C 1 or 3"):
        image_grid(np.zeros(shape), 2)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_curve_shows_its_values(theme):
    steps = list(range(1, 101))
    falling = pixels(curve(steps, [101 - step for step in steps], "loss", theme=theme))
    rising = pixels(curve(steps, steps, "loss", theme=theme))
    assert falling.shape == rising.shape == (400, 520, 3)
    assert close_to(falling, theme.surface, 2) > falling[..., 0].size / 2
    blue = [
        np.abs(p - [int(theme.encoder[i : i + 2], 16) for i in (1, 3, 5)]).max(-1) < 30 for p in (falling, rising)
    ]
    first, last = blue[0].nonzero(), blue[1].nonzero()
    # Height of the line at its left end: near the top where it falls, near the bottom where it rises.
    assert first[0][first[1].argmin()] < 200 < last[0][last[1].argmin()]


def test_curve_marks_its_target():
    without = pixels(curve([1, 2], [0.9, 1.1], "ratio"))
    with_target = pixels(curve([1, 2], [0.9, 1.1], "ratio", target=1.0))
    assert close_to(with_target, LIGHT.muted) > close_to(without, LIGHT.muted) + 200


def test_plane_shows_both_sets_whichever_comes_first():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 500, 2))
    limits = [(-4.0, 4.0), (-4.0, 4.0)]
    overlaid = pixels(plane(z[0], z[1], ("encoder", "sampler"), "sampler", (0.6, 0.2), limits))
    blue, orange = close_to(overlaid, LIGHT.encoder, 110), close_to(overlaid, LIGHT.sampler, 110)
    assert min(blue, orange) > 0.6 * max(blue, orange) > 1000
    apart = pixels(plane(z[0], z[1] + 100, ("encoder", "sampler"), "sampler", (0.6, 0.2), limits))
    assert close_to(apart, LIGHT.sampler, 110) < 0.2 * orange  # out of the frame: only the legend is left


def test_plane_of_one_dimension_is_a_histogram():
    z = np.random.default_rng(0).normal(size=(2, 500, 1))
    picture = pixels(plane(z[0], z[1] + 3, ("encoder", "sampler"), "sampler", (1.0,), [(-4.0, 7.0)]))
    assert min(close_to(picture, LIGHT.encoder, 120), close_to(picture, LIGHT.sampler, 120)) > 10_000


def test_dots_highlights_the_best_and_draws_the_bound():
    values = {"N(0, I)": [28.0, 29.0], "sampler": [15.0, 15.5]}
    plain, best = pixels(dots(values, None, None, "FD")), pixels(dots(values, "sampler", 14.5, "FD"))
    assert close_to(plain, LIGHT.sampler) < 20 < close_to(best, LIGHT.sampler)
    assert close_to(best, LIGHT.muted) > close_to(plain, LIGHT.muted) + 100


def test_pictures_are_reproducible():
    assert curve([1, 2], [1, 3], "loss") == curve([1, 2], [1, 3], "loss")


def test_training_curves_skip_what_was_not_logged():
    history = [{"phase": "autoencoder", "step": 5, "loss": 2.0, "kl": None}, {"phase": "other", "step": 1}]
    assert {phase: [p.name for p in ps] for phase, ps in training_curves(history).items()} == {
        "autoencoder": ["training-autoencoder-loss"]
    }


def test_variance_ratio_has_its_target():
    history = [{"phase": "sampler", "step": step, "variance_ratio": 1 - 1 / step} for step in (10, 20)]
    picture = training_curves(history)["sampler"][0]
    assert picture.light == curve([10, 20], [0.9, 0.95], "Variance ratio", target=1.0)
    assert picture.dark == curve([10, 20], [0.9, 0.95], "Variance ratio", target=1.0, theme=DARK)
