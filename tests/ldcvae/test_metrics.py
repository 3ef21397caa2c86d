"""Sample distances against closed forms, dense references, SciPy and torchmetrics."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from ldcvae.metrics import neighbours
from ldcvae.metrics.images import frechet_distance, frechet_from_moments, kid, kid_within, moments
from ldcvae.metrics.latents import median_bandwidths, mmd2, mmd2_within, sliced_wasserstein
from ldcvae.metrics.neighbours import ball_radii, prdc


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=generator, dtype=torch.float64)


class Identity(nn.Module):
    num_features = 5

    def forward(self, x: Tensor) -> Tensor:
        return x


# Fréchet distance


def test_frechet_of_diagonal_gaussians_in_closed_form() -> None:
    mean_x, mean_y = torch.tensor([0.0, 1.0]), torch.tensor([3.0, -1.0])
    var_x, var_y = torch.tensor([1.0, 4.0]), torch.tensor([9.0, 0.0])
    expected = (mean_x - mean_y).square().sum() + (var_x.sqrt() - var_y.sqrt()).square().sum()
    assert frechet_from_moments(mean_x, var_x.diag(), mean_y, var_y.diag()) == pytest.approx(float(expected))


def test_frechet_agrees_with_scipy_and_torchmetrics() -> None:
    mixing = normal(5, 5, seed=2)
    x, y = normal(200, 5, seed=0) @ mixing, normal(150, 5, seed=1, shift=0.3)
    (mean_x, cov_x), (mean_y, cov_y) = ((a.mean(0), np.cov(a.T)) for a in (x.numpy(), y.numpy()))
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = ((mean_x - mean_y) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)

    fid = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    fid.update(x, real=True)
    fid.update(y, real=False)
    assert frechet_distance(x, y) == pytest.approx(float(fid.compute()), rel=1e-6)


def test_frechet_is_exact_for_singular_covariances() -> None:
    few = normal(10, 64, seed=0)  # rank 9 of 64
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(few, few + 1.0) == pytest.approx(64.0, rel=1e-12)
    assert frechet_distance(few, 3.0 * few) == pytest.approx(
        float(4 * few.mean(0).square().sum() + 4 * few.var(0).sum()), rel=1e-10
    )
    constant = torch.ones(4, 3)
    assert frechet_distance(constant, constant) == 0.0


def test_moments_of_float32_far_from_the_origin() -> None:
    x = normal(500, 3, seed=0, shift=1000.0).float()
    mean, covariance = moments(x)
    torch.testing.assert_close(covariance, x.double().T.cov())
    assert mean.dtype == torch.float64
    assert moments(x[:, :1])[1].shape == (1, 1)


# Kernel distances


def dense_mmd2(x: Tensor, y: Tensor, kernel) -> float:
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i, j in itertools.permutations(range(n), 2))
    yy = sum(kernel(y[i], y[j]) for i, j in itertools.permutations(range(m), 2))
    xy = sum(kernel(a, b) for a in x for b in y)
    return float(xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m))


@pytest.mark.parametrize("bandwidths", [[0.7, 2.0], [2.0, 0.5, 1.0], [1.0, 1.0, 0.3]])
def test_mmd2_and_kid_agree_with_the_double_loop(bandwidths: list[float]) -> None:
    x, y = normal(7, 3, seed=0), normal(9, 3, seed=1, shift=0.5)

    def rbf(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([torch.exp(-(a - b).square().sum() / (2 * h * h)) for h in bandwidths]).mean()

    assert mmd2(x, y, bandwidths) == pytest.approx(dense_mmd2(x, y, rbf), rel=1e-9)
    assert mmd2(x, y, bandwidths, within=mmd2_within(y, bandwidths)) == mmd2(x, y, bandwidths)
    assert kid(x, y).mean == pytest.approx(dense_mmd2(x, y, lambda a, b: (a @ b / 3 + 1) ** 3), rel=1e-9)


def test_kid_agrees_with_torchmetrics() -> None:
    x, y = normal(100, 8, seed=0), normal(100, 8, seed=1, shift=0.2)
    assert kid(x, y).mean == pytest.approx(float(poly_mmd(x, y)), rel=1e-9)
    assert kid(x, y).std is None


def test_kid_subsets_are_seeded_and_scatter_around_the_full_estimate() -> None:
    x, y = normal(600, 4, seed=0), normal(500, 4, seed=1, shift=0.5)
    draw = lambda s: kid(x, y, subsets=40, subset_size=200, generator=torch.Generator().manual_seed(s))  # noqa: E731
    first = draw(0)
    assert first == draw(0)
    assert first != draw(1)
    assert first.std is not None
    assert first.mean == pytest.approx(kid(x, y).mean, abs=3 * first.std / math.sqrt(40) + 0.02)
    assert 0.0 < first.std < first.mean
    # A subset of everything is the full sample, in another order.
    whole = kid(x[:500], y, subsets=2, subset_size=500)
    assert whole.mean == pytest.approx(kid(x[:500], y).mean, rel=1e-6)
    assert whole.std == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", ["mmd2", "kid"])
def test_unbiased_when_the_laws_agree(name: str) -> None:
    values = []
    for seed in range(200):
        x, y = normal(30, 2, seed=2 * seed), normal(20, 2, seed=2 * seed + 1)
        values.append(mmd2(x, y, [1.0]) if name == "mmd2" else kid(x, y).mean)
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert 0.2 < np.mean(np.array(values) < 0) < 0.9


def test_mmd2_grows_with_the_shift_and_uses_the_references_median() -> None:
    x, y = normal(300, 4, seed=0), normal(300, 4, seed=1)
    shifted = [mmd2(x + s, y) for s in (0.0, 0.5, 1.0, 2.0)]
    assert shifted == sorted(shifted)
    bandwidths = median_bandwidths(y)
    assert bandwidths == pytest.approx([f * float(torch.pdist(y).median()) for f in (0.5, 1, 2)], rel=1e-3)
    assert mmd2(x, y) == mmd2(x, y, bandwidths)
    assert median_bandwidths(normal(5000, 2, seed=0)) == median_bandwidths(normal(5000, 2, seed=0))


# Precision, recall, density, coverage


def dense_prdc(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    def radius(points: Tensor, i: int) -> float:
        return sorted(float((points[i] - points[j]).norm()) for j in range(len(points)) if j != i)[k - 1]

    n, m = len(real), len(fake)
    distance = [[float((r - f).norm()) for f in fake] for r in real]
    in_real = [[distance[i][j] <= radius(real, i) for j in range(m)] for i in range(n)]
    in_fake = [[distance[i][j] <= radius(fake, j) for j in range(m)] for i in range(n)]
    precision = sum(any(in_real[i][j] for i in range(n)) for j in range(m)) / m
    recall = sum(any(row) for row in in_fake) / n
    density = sum(map(sum, in_real)) / (k * m)
    coverage = sum(any(row) for row in in_real) / n
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3])
def test_prdc_agrees_with_the_dense_reference(k: int) -> None:
    real, fake = normal(20, 2, seed=0), normal(15, 2, seed=1, shift=0.8, scale=0.7)
    result = prdc(real, fake, k=k)
    assert dataclasses.astuple(result) == pytest.approx((*dense_prdc(real, fake, k), k))
    assert 0.0 < result.recall < 1.0
    assert json.loads(json.dumps(dataclasses.asdict(result)))["k"] == k


def test_prdc_at_its_limits() -> None:
    real = normal(200, 4, seed=0, shift=50.0)
    for chunk in (7, 512):  # copies lie on the balls' surfaces: rounding must not decide
        copy = prdc(real, real.clone(), k=3, chunk=chunk)
        assert (copy.precision, copy.recall, copy.coverage) == (1.0, 1.0, 1.0)
        assert copy.density == pytest.approx(4 / 3)  # itself and the three that its ball is made of
    same = prdc(normal(1000, 2, seed=0), normal(1000, 2, seed=1))
    assert same.density == pytest.approx(1.0, abs=0.1)
    assert same.coverage > 0.9
    collapsed = prdc(real, real[:1] + 1e-3 * normal(200, 4, seed=2), k=3)
    assert collapsed.precision == 1.0
    assert collapsed.recall < 0.05
    assert collapsed.coverage < 0.1
    far = prdc(real, real + 100.0)
    assert dataclasses.astuple(far) == (0.0, 0.0, 0.0, 0.0, 5)


# Sliced Wasserstein distance


@pytest.mark.parametrize("counts", [(50, 50), (50, 35), (1, 8), (7, 13)])
def test_one_dimensional_wasserstein_agrees_with_scipy(counts: tuple[int, int]) -> None:
    x, y = normal(counts[0], 1, seed=0), normal(counts[1], 1, seed=1, shift=0.4, scale=2.0)
    expected = scipy.stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, projections=1, order=1) == pytest.approx(expected, rel=1e-9)
    # Order 2: repeat both to a common count, where the optimal plan pairs the sorted values.
    n, m = counts
    pairs = x[:, 0].sort().values.repeat_interleave(m) - y[:, 0].sort().values.repeat_interleave(n)
    expected = float(pairs.square().mean().sqrt())
    assert sliced_wasserstein(x, y, projections=3) == pytest.approx(expected, rel=1e-9)


def test_sliced_wasserstein_of_a_shift_and_of_a_scale() -> None:
    x, d, shift = normal(400, 8, seed=0), 8, 3.0
    generator = torch.Generator().manual_seed(0)
    # |θ·v|² averages to |v|²/d over directions, here with |v|² = 9 d.
    measured = sliced_wasserstein(x, x + shift, projections=4000, generator=generator)
    assert measured == pytest.approx(shift, rel=0.05)
    first = sliced_wasserstein(x, 2 * x, generator=generator.manual_seed(1))
    again = sliced_wasserstein(x, 2 * x, generator=generator.manual_seed(1))
    assert first == again
    assert first == pytest.approx(math.sqrt(float(x.square().sum(1).mean()) / d), rel=0.05)
    assert sliced_wasserstein(x, x.clone()) == 0.0


# All of them


def test_chunk_does_not_change_results() -> None:
    x, y = normal(60, 3, seed=0).float(), normal(45, 3, seed=1, shift=0.3).float()
    for chunk in (1, 7, 45):
        assert mmd2(x, y, chunk=chunk) == pytest.approx(mmd2(x, y), rel=1e-9)
        assert kid(x, y, chunk=chunk).mean == pytest.approx(kid(x, y).mean, rel=1e-9)
        assert prdc(x, y, chunk=chunk) == prdc(x, y)


def test_long_rows_of_distances_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(300, 3, seed=0).float(), normal(400, 3, seed=1, shift=0.3).float()
    whole, sizes = prdc(x, y), []
    monkeypatch.setattr(neighbours, "_MOST_PAIRS", 10_000)
    real = neighbours.distances_to

    def watched(points: Tensor):
        distances = real(points)

        def measured(rows: Tensor, out: Tensor) -> Tensor:
            found = distances(rows, out)
            sizes.append(found.numel())
            return found

        return measured

    monkeypatch.setattr(neighbours, "distances_to", watched)
    assert prdc(x, y) == whole
    assert max(sizes) <= 10_000


def test_what_depends_on_the_reference_alone_can_be_given() -> None:
    x, y = normal(60, 3, seed=0).float(), normal(45, 3, seed=1, shift=0.3).float()
    assert kid(x, y, within=kid_within(y)) == kid(x, y)
    assert prdc(y, x, radii=ball_radii(y)) == prdc(y, x)
    with pytest.raises(ValueError, match="real has 5 rows, needs at least 6"):
        ball_radii(x[:5])


@pytest.mark.parametrize("metric", [frechet_distance, kid, mmd2, prdc, sliced_wasserstein])
def test_bad_samples_are_named(metric) -> None:
    x = normal(20, 3, seed=0)
    names = "real|x", "fake|y"
    broken = x.clone()
    broken[[11, 13], 2] = math.nan
    with pytest.raises(ValueError, match=rf"({names[1]}) holds a non-finite value in row 11 \(2 such rows\)"):
        metric(x, broken)
    with pytest.raises(ValueError, match=rf"({names[0]}) has 3 dimensions and ({names[1]}) has 2"):
        metric(x, x[:, :2])
    with pytest.raises(ValueError, match=rf"({names[0]}) has 0 rows, needs at least"):
        metric(x[:0], x)
    with pytest.raises(ValueError, match=rf"({names[0]}) must be a floating-point matrix"):
        metric(x.long(), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mmd2(x, x, []), "bandwidths must be"),
        (lambda x: mmd2(x, x, [1.0, 0.0]), "bandwidths must be"),
        (lambda x: mmd2(x, torch.ones(9, 2)), "median pairwise distance of y is zero"),
        (lambda x: mmd2(x, x, chunk=0), "chunk must be at least 1"),
        (lambda x: kid(x, x, subsets=0), "subsets must be at least 1"),
        (lambda x: kid(x, x, subsets=3), r"subset_size must lie in 2 \.\. 6, got 1000"),
        (lambda x: prdc(x, x, k=0), "k and chunk must be at least 1"),
        (lambda x: prdc(x, x, k=6), "real has 6 rows, needs at least 7"),
        (lambda x: sliced_wasserstein(x, x, projections=0), "projections must be"),
        (lambda x: sliced_wasserstein(x, x, order=3), "order must be 1 or 2"),
        (lambda x: frechet_from_moments(x[0], x, x[0], x), r"cov_x must have shape \(2, 2\)"),
        (lambda x: frechet_from_moments(x[0], x[:2], x[0] / 0, x[:2]), "mean_y holds a non-finite"),
    ],
)
def test_errors_say_what_is_allowed(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(normal(6, 2, seed=0))
