"""Radial kernels and bandwidth rules.

Every kernel here is a function of the squared distance, `k(x, y) = f(|x - y|²)`, so that both its value and
its summed gradient need nothing larger than the (n, m) matrix of squared distances:

    ∇ₓ k(x, y) = slope · (x - y)   with   slope = 2 f'(|x - y|²)

and hence `Σᵢ ∇ₓᵢ k(xᵢ, yⱼ) = slopeᵀ x - y · Σᵢ slopeᵢⱼ`, two matrix products instead of an (n, m, d) tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldcvae.exponentials import exp_or_zero

__all__ = [
    "KERNELS",
    "Kernel",
    "distances_to",
    "get_kernel",
    "median_distance",
    "nearest_neighbour_distance",
    "spread",
    "squared_distances",
]

_MEDIAN_ROWS = 2048  # whose pairwise distances a median is taken over


def distances_to(y: Tensor) -> Callable[..., Tensor]:
    """`squared_distances(·, y)` for many blocks of queries: what depends on `y` alone is computed once.

    The function returned takes a second argument, a matrix to write into, where no gradient is wanted.

    Raises:
        ValueError: if `y` is not a matrix.

    Example:
        >>> to_origin = distances_to(torch.tensor([[0.0, 0.0]]))
        >>> to_origin(torch.tensor([[3.0, 4.0]]))
        tensor([[25.]])
    """
    if y.ndim != 2:
        raise ValueError(f"expected (m, d) points, got {tuple(y.shape)}")
    centre = y.mean(0)
    y = y - centre
    norms = (y * y).sum(1)

    def squares(x: Tensor, out: Tensor | None = None) -> Tensor:
        x = x - centre
        products = torch.addmm(norms, x, y.T, alpha=-2.0, out=out)
        return products.add_((x * x).sum(1, keepdim=True)).clamp_(min=0.0)

    return squares


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances `|xᵢ - yⱼ|²` in matmul form.

    Args:
        x: (n, d) points.
        y: (m, d) points.

    Returns:
        (n, m) squared distances, clamped at zero. Both sides are centred on the mean of `y` first, which keeps
        float32 accurate for points far from the origin.

    Raises:
        ValueError: if the two sides differ in dimension or are not matrices.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[25.]])
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"expected (n, d) and (m, d) points, got {tuple(x.shape)} and {tuple(y.shape)}")
    return distances_to(y)(x)


@dataclass(frozen=True)
class Kernel:
    """A radial kernel: its value and slope as functions of squared distance and bandwidth.

    Attributes:
        name: how configs call it.
        value: `(squared distances, bandwidth) -> k`, a new tensor of the same shape, 1 at distance zero.
        slope: `(squared distances, bandwidth, k) -> 2 dk/d(r²)`, so that `∇ₓ k(x, y) = slope · (x - y)`; a new
            tensor, made of the kernel's value where that saves an exponential.

    Example:
        >>> rbf = get_kernel("rbf")
        >>> float(rbf.value(torch.tensor(2.0), 1.0))  # exp(-2 / 2)
        0.36787...
    """

    name: str
    value: Callable[[Tensor, float | Tensor], Tensor]
    slope: Callable[[Tensor, float | Tensor, Tensor], Tensor]


def _rbf(squares: Tensor, bandwidth: float | Tensor) -> Tensor:
    return exp_or_zero(squares / (-2.0 * bandwidth**2))


def _rbf_slope(squares: Tensor, bandwidth: float | Tensor, value: Tensor) -> Tensor:
    return value / (-(bandwidth**2))


def _imq(squares: Tensor, bandwidth: float | Tensor) -> Tensor:
    return (1.0 + squares / bandwidth**2).rsqrt()


def _imq_slope(squares: Tensor, bandwidth: float | Tensor, value: Tensor) -> Tensor:
    return (1.0 + squares / bandwidth**2).pow(-1.5) / (-(bandwidth**2))


def _laplace(squares: Tensor, bandwidth: float | Tensor) -> Tensor:
    return exp_or_zero(squares.sqrt() / -bandwidth)


def _laplace_slope(squares: Tensor, bandwidth: float | Tensor, value: Tensor) -> Tensor:
    # The kernel has a cusp at distance zero; (x - y) is zero there, and so is the subgradient we choose.
    # In float32 near points may be at zero, too: of the cusp's slope there would be left what rounding makes of it.
    return (value / squares.sqrt().mul_(-bandwidth)).masked_fill_(squares == 0.0, 0.0)


KERNELS: dict[str, Kernel] = {
    "rbf": Kernel("rbf", _rbf, _rbf_slope),  # exp(-r² / 2h²)
    "imq": Kernel("imq", _imq, _imq_slope),  # (1 + r²/h²)^(-1/2), Gorham & Mackey 2017 (1703.01717)
    "laplace": Kernel("laplace", _laplace, _laplace_slope),  # exp(-r / h)
}


def get_kernel(name: str) -> Kernel:
    """The kernel called `name`.

    Raises:
        ValueError: naming the valid choices.

    Example:
        >>> get_kernel("imq").name
        'imq'
    """
    try:
        return KERNELS[name]
    except KeyError:
        raise ValueError(f"unknown kernel {name!r}: choose one of {', '.join(KERNELS)}") from None


def _off_diagonal(squares: Tensor) -> Tensor:
    n = squares.shape[0]
    return squares.flatten()[1:].view(n - 1, n + 1)[:, :-1]


def spread(x: Tensor, most: int = _MEDIAN_ROWS) -> Tensor:
    """At most `most` rows of `x`, evenly spaced; `x` itself if it has no more.

    Example:
        >>> spread(torch.arange(5), most=2)
        tensor([0, 3])
    """
    return x[:: max(1, -(-len(x) // most))]


def median_distance(x: Tensor) -> Tensor:
    """Median pairwise distance of the rows of `x` (n, d), a 0-d tensor, in the units of `x`.

    Of more than 2048 rows 1,025 to 2,048 are taken, evenly spaced: all n² distances would not fit.

    Raises:
        ValueError: with fewer than two rows.

    Example:
        >>> float(median_distance(torch.tensor([[0.0], [1.0], [3.0]])))
        2.0
    """
    if x.shape[0] < 2:
        raise ValueError(f"median_distance needs at least 2 rows, got {x.shape[0]}")
    x = spread(x)
    return _off_diagonal(squared_distances(x, x)).sqrt().median()


def nearest_neighbour_distance(x: Tensor, max_points: int = 4096) -> Tensor:
    """Median distance from a row of `x` to its nearest other row: the unit of the sampler's bandwidths.

    The figure depends on how many points there are, so it is taken over the first `max_points` rows: pass rows
    in random order, and as many as the sampler has particles. Memory is bounded by `max_points`, 128 MiB in float32.

    Args:
        x: (n, d) encoder draws in random order, n >= 2.
        max_points: how many rows to use.

    Returns:
        0-d tensor, in the units of `x`.

    Raises:
        ValueError: with fewer than two rows.

    Example:
        >>> float(nearest_neighbour_distance(torch.tensor([[0.0], [1.0], [5.0]])))
        1.0
    """
    x = x[:max_points]
    if x.shape[0] < 2:
        raise ValueError(f"nearest_neighbour_distance needs at least 2 rows, got {x.shape[0]}")
    return squared_distances(x, x).fill_diagonal_(float("inf")).amin(1).sqrt().median()
