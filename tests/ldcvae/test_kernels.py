import math

import pytest
import torch

from ldcvae.directions.kernels import (
    KERNELS,
    get_kernel,
    median_distance,
    nearest_neighbour_distance,
    squared_distances,
)


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 2.5])
def test_slope_gives_the_gradient_of_the_value(name, bandwidth):
    kernel, x, y = get_kernel(name), points(7, 3).requires_grad_(), points(5, 3, seed=1)
    direct = (x[:, None] - y).square().sum(-1)
    (gradient,) = torch.autograd.grad(kernel.value(direct, bandwidth).sum(), x)
    squares = squared_distances(x.detach(), y)
    slope = kernel.slope(squares, bandwidth, kernel.value(squares, bandwidth))
    closed = slope.sum(1, keepdim=True) * x.detach() - slope @ y
    torch.testing.assert_close(closed, gradient)


def test_kernel_values_are_the_textbook_ones():
    r2 = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    expected = {
        "rbf": [math.exp(-r * r / (2 * 0.7**2)) for r in (0, 1, 2)],
        "imq": [1 / math.sqrt(1 + r * r / 0.7**2) for r in (0, 1, 2)],
        "laplace": [math.exp(-r / 0.7) for r in (0, 1, 2)],
    }
    for name, values in expected.items():
        torch.testing.assert_close(get_kernel(name).value(r2, 0.7), torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["rbf", "laplace"])
def test_no_kernel_value_or_slope_is_denormal(name, dtype):
    kernel, squares = get_kernel(name), torch.logspace(0, 8, 5000, dtype=dtype)
    value = kernel.value(squares, 1.0)
    slope = kernel.slope(squares, 1.0, value).abs()
    for found in (value, slope):
        assert float(found[found > 0].min()) >= torch.finfo(dtype).tiny
        assert int((found == 0).sum()) > 0
    exact = torch.exp(-squares.double() / 2 if name == "rbf" else -squares.double().sqrt())
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=4000 * torch.finfo(dtype).tiny)


@pytest.mark.parametrize("name", KERNELS)
def test_slope_is_finite_at_distance_zero(name):
    assert torch.isfinite(get_kernel(name).slope(torch.zeros(1), 1.0, torch.ones(1)) * torch.zeros(1)).all()


def test_unknown_kernel_names_the_choices():
    with pytest.raises(ValueError, match="rbf, imq, laplace"):
        get_kernel("gaussian")


def test_squared_distances_match_cdist_far_from_the_origin():
    x, y = points(20, 4).float() + 1000.0, points(30, 4, seed=1).float() + 1000.0
    exact = torch.cdist(x.double(), y.double()).square().float()
    torch.testing.assert_close(squared_distances(x, y), exact, rtol=1e-3, atol=1e-3)


def test_squared_distances_refuse_different_dimensions():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 4\)"):
        squared_distances(torch.zeros(3, 2), torch.zeros(3, 4))


def test_bandwidth_rules_against_brute_force():
    x = points(40, 3)
    pairs = torch.pdist(x)
    torch.testing.assert_close(median_distance(x), torch.cat([pairs, pairs]).median())
    dense = torch.cdist(x, x).fill_diagonal_(float("inf"))
    torch.testing.assert_close(nearest_neighbour_distance(x), dense.amin(1).median())


def test_nearest_neighbour_needs_two_rows():
    with pytest.raises(ValueError, match="at least 2"):
        nearest_neighbour_distance(torch.zeros(1, 2))
