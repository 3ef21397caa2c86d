"""How far two sets of latents are apart: unbiased MMD² and the sliced Wasserstein distance.

These are the figures of latent consistency: encoder draws of held-out images against sampler draws.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldcvae.directions.kernels import median_distance, spread, squared_distances
from ldcvae.metrics.images import check_pair, check_samples, mean_within, unbiased_mmd2

__all__ = ["median_bandwidths", "mmd2", "mmd2_within", "nearest_distance", "sliced_wasserstein"]

_NEAREST_ROWS, _NEAREST_PAIRS = 1024, 2**25  # of the distance matrix of `nearest_distance` held at a time
_MEDIAN_ROWS = 2000  # whose pairwise distances the median is taken over: all n² would not fit
_PROJECTIONS_AT_A_TIME = 32
_MOST_DOUBLINGS = 8  # of a kernel to make the next: each rounds once more


def median_bandwidths(y: Tensor, factors: Sequence[float] = (0.5, 1.0, 2.0)) -> list[float]:
    """The median pairwise distance of `y` times each factor, in latent units: the bandwidths of `mmd2`.

    Taken over at most 2000 rows, evenly spaced, so that the same `y` always gives the same bandwidths.

    Args:
        y: (m, d) reference latents, m >= 2, not all equal.
        factors: positive multiples of the median.

    Raises:
        ValueError: on bad inputs, or if the median distance is zero.

    Example:
        >>> median_bandwidths(torch.tensor([[0.0], [1.0], [3.0]]))
        [1.0, 2.0, 4.0]
    """
    y = check_samples("y", y, 2)
    median = float(median_distance(spread(y, _MEDIAN_ROWS)))
    if not median > 0.0:
        raise ValueError("the median pairwise distance of y is zero: give bandwidths")
    return [median * factor for factor in factors]


def _rbf(bandwidths: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of RBF kernels over the bandwidths."""
    if len(bandwidths) == 0 or not all(0.0 < h < math.inf for h in bandwidths):
        raise ValueError(f"bandwidths must be one or more positive numbers, got {list(bandwidths)}")
    widest, *others = sorted(bandwidths, reverse=True)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = squared_distances(a, b)
        value, last = torch.exp(squares / (-2.0 * widest**2)), widest
        total = value.clone()
        for h in others:
            doublings = math.log2((last / h) ** 2)
            if doublings == round(doublings) <= _MOST_DOUBLINGS:
                # exp takes most of the time, and half of a bandwidth is the fourth power of its kernel.
                for _ in range(round(doublings)):
                    value.square_()
            else:
                torch.exp(squares / (-2.0 * h**2), out=value)
            total += value
            last = h
        return total.div_(len(bandwidths))

    return kernel


def mmd2_within(y: Tensor, bandwidths: Sequence[float], chunk: int = 512) -> float:
    """The part of `mmd2(x, y, bandwidths)` that is the same for every x, for its argument `within`.

    Args:
        y: (m, d) reference latents, m >= 2.
        bandwidths: h, in latent units.
        chunk: as of `mmd2`.

    Raises:
        ValueError: as `mmd2`.

    Example:
        >>> mmd2_within(torch.tensor([[1.0], [1.0]]), [1.0])
        1.0
    """
    return mean_within(check_samples("y", y, 2), _rbf(bandwidths), chunk)


def mmd2(
    x: Tensor,
    y: Tensor,
    bandwidths: Sequence[float] | None = None,
    chunk: int = 512,
    within: float | None = None,
) -> float:
    """Unbiased MMD² under the mean of RBF kernels `exp(-|a - b|² / 2h²)` over the bandwidths h.

    Args:
        x: (n, d) latents, n >= 2.
        y: (m, d) reference latents, m >= 2.
        bandwidths: h, in latent units; None: `median_bandwidths(y)`. Give them where several calls are to be
            compared, or each is on its own scale.
        chunk: the kernel matrix is summed by blocks of `chunk` by `chunk`.
        within: `mmd2_within(y, bandwidths)`, where many x are compared with one y.

    Returns:
        The estimate, without unit, at most 2; zero in expectation, and so sometimes negative, when the laws
        agree.

    Raises:
        ValueError: on bad inputs (naming the row of a non-finite value) or bandwidths that are not positive.

    References:
        Gretton et al. 2012, A kernel two-sample test (JMLR 13), eq. 3.

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> abs(mmd2(x[:200], x[200:])) < 0.02, mmd2(x, x + 5.0) > 0.5
        (True, True)
    """
    x, y = check_pair(x, y)
    if bandwidths is None:
        bandwidths = median_bandwidths(y)
    return unbiased_mmd2(x, y, _rbf(bandwidths), chunk, within)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    projections: int = 256,
    generator: torch.Generator | None = None,
    *,
    order: int = 2,
) -> float:
    """Sliced Wasserstein distance, `(mean_θ W_p(θ·x, θ·y)^p)^(1/p)` over random unit directions θ.

    Each one-dimensional distance is exact, `∫ |Fₓ⁻¹(u) - Fᵧ⁻¹(u)|^p du` over the two empirical quantile
    functions, whatever the counts n and m.

    Args:
        x: (n, d) latents, n >= 1.
        y: (m, d) latents, m >= 1.
        projections: how many directions.
        generator: draws the directions; seed it alike where several calls are to be compared.
        order: p, 1 or 2.

    Returns:
        The distance of order p, in latent units; between draws of one law it is positive and falls as n grows.

    Raises:
        ValueError: on bad inputs (naming the row of a non-finite value), no projections, or another order.

    References:
        Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures (JMIV 51).

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> sliced_wasserstein(x, x + 3.0)
        3.0
    """
    x, y = check_pair(x, y, least=1)
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    n, m = len(x), len(y)
    # Both quantile functions are constant between consecutive multiples of 1/n and 1/m; counted in units of
    # 1/(n m) these are whole numbers, so no interval is lost or split by rounding.
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    widths = torch.diff(steps, prepend=steps.new_zeros(1)).double() / (n * m)
    rows_x, rows_y = (steps - 1) // m, (steps - 1) // n

    device = x.device if generator is None else generator.device
    directions = torch.randn(projections, x.shape[1], generator=generator, device=device, dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions.to(x.device), dim=1)
    total = x.new_zeros(())
    for theta in directions.split(_PROJECTIONS_AT_A_TIME):
        quantiles_x = (theta @ x.T).sort(1).values[:, rows_x]
        quantiles_y = (theta @ y.T).sort(1).values[:, rows_y]
        total += ((quantiles_x - quantiles_y).abs() ** order @ widths).sum()
    return float(total / projections) ** (1.0 / order)


def nearest_distance(x: Tensor, y: Tensor) -> float:
    """Mean distance from a row of `x` to the nearest row of `y`, in latent units.

    A generator that memorises draws latents nearer to the training encodings than to as many held-out ones; one that
    does not is as near to either. The figure depends on the number of rows of `y`: compare at equal counts.

    Args:
        x: (n, d) latents.
        y: (m, d) encodings.

    Raises:
        ValueError: on bad inputs, naming the row of a non-finite value.

    Example:
        >>> nearest_distance(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [7.0]]))
        2.0
    """
    x, y = check_pair(x, y, least=1)
    rows = max(1, min(_NEAREST_ROWS, _NEAREST_PAIRS // len(y)))
    nearest = [squared_distances(part, y).amin(1).sqrt() for part in x.split(rows)]
    return float(torch.cat(nearest).mean())
