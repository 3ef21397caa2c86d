"""Distances between two sets of samples: of image features, or of latents.

Every function takes plain tensors (n, d) and (m, d), computes in float64 on their device, and where a matrix
over pairs is needed takes it by blocks, whose size `chunk` bounds memory and changes no result. For latents
see also `ldcvae.metrics.latents`. What depends on the reference alone, a pass over all of its pairs, can be computed
once and given to every call.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "KID",
    "frechet_distance",
    "frechet_from_moments",
    "kid",
    "kid_within",
    "moments",
]


def check_samples(name: str, x: Tensor, least: int) -> Tensor:
    """`x` in float64 if it is a finite floating-point matrix of at least `least` rows, else a ValueError."""
    if x.ndim != 2 or x.shape[1] == 0 or not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point matrix (n, d), got {x.dtype} {tuple(x.shape)}")
    if x.shape[0] < least:
        raise ValueError(f"{name} has {x.shape[0]} rows, needs at least {least}")
    bad = (~x.isfinite()).any(1).nonzero()
    if len(bad):
        raise ValueError(f"{name} holds a non-finite value in row {int(bad[0])} ({len(bad)} such rows)")
    return x.detach().double()


def check_pair(x: Tensor, y: Tensor, least: int = 2, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Both sample sets checked and in float64; they must agree in dimension."""
    checked = check_samples(names[0], x, least), check_samples(names[1], y, least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names[0]} has {x.shape[1]} dimensions and {names[1]} has {y.shape[1]}: must be equal")
    return checked


_Kernel = Callable[[Tensor, Tensor], Tensor]
"""Symmetric, `(n, d), (m, d) -> (n, m)`; called on blocks of rows."""


def mean_within(x: Tensor, kernel: _Kernel, chunk: int) -> float:
    """`mean k(x, x')` over distinct pairs, by blocks of at most `chunk` rows; ValueError for a chunk below 1."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    sums, blocks = [], x.split(chunk)
    for i, u in enumerate(blocks):
        block = kernel(u, u)
        sums.append(block.sum() - block.diagonal().sum())  # a row paired with itself biases the estimate
        sums.extend(2.0 * kernel(u, v).sum() for v in blocks[i + 1 :])
    return float(torch.stack(sums).sum() / (len(x) - 1) / len(x))


def unbiased_mmd2(x: Tensor, y: Tensor, kernel: _Kernel, chunk: int, within: float | None = None) -> float:
    """`mean k(x, x') + mean k(y, y') - 2 mean k(x, y)` over distinct pairs; `within` is the second, if known."""
    own = mean_within(x, kernel, chunk)
    within = mean_within(y, kernel, chunk) if within is None else within
    across = torch.stack([kernel(u, v).sum() for u in x.split(chunk) for v in y.split(chunk)]).sum() / len(y)
    return own + within - 2.0 * float(across / len(x))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of the rows of `x`, in float64.

    Raises:
        ValueError: with fewer than two rows, or a value that is not finite.

    Example:
        >>> mean, covariance = moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> mean.tolist(), covariance.tolist()
        ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    x = check_samples("x", x, 2)
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def _root(covariance: Tensor) -> Tensor:
    """A matrix R with `R Rᵀ = covariance`; rounding noise in the null space of a singular one is dropped."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2.0)
    noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return vectors * torch.where(values > noise, values, 0.0).sqrt()


def frechet_from_moments(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians, `|mₓ - mᵧ|² + tr(Cₓ + Cᵧ - 2 (Cₓ Cᵧ)^½)`.

    The trace of the root is the sum of the singular values of `Rₓᵀ Rᵧ` with `R Rᵀ = C`, which needs symmetric
    eigendecompositions only and stays accurate when the covariances are singular.

    Args:
        mean_x: (d,) mean; `mean_y` likewise.
        cov_x: (d, d) covariance; `cov_y` likewise.
        mean_y: see `mean_x`.
        cov_y: see `cov_x`.

    Returns:
        The distance in squared units of the features; 0 when the moments agree.

    Raises:
        ValueError: on shapes that do not fit, or a value that is not finite.

    References:
        Dowson & Landau 1982; Heusel et al. 2017, 1706.08500 (FID, with Inception features).

    Example:
        >>> one = torch.ones(1)
        >>> frechet_from_moments(0 * one, one.diag(), 3 * one, 4 * one.diag())  # 3² + (2 - 1)²
        10.0
    """
    d = mean_x.numel()
    arguments = {"mean_x": mean_x, "cov_x": cov_x, "mean_y": mean_y, "cov_y": cov_y}
    for name, value in arguments.items():
        expected = (d,) if name.startswith("mean") else (d, d)
        if value.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(value.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds a non-finite value")
    mean_x, cov_x, mean_y, cov_y = (a.detach().double() for a in arguments.values())
    trace_root = torch.linalg.svdvals(_root(cov_x).T @ _root(cov_y)).sum()
    distance = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2.0 * trace_root
    return max(float(distance), 0.0)  # rounding can leave -1e-13 where the moments agree


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the moments of `x` and `y`.

    It is biased upwards by about 1/n: compare figures only at equal counts.

    Args:
        x: (n, d) features, n >= 2.
        y: (m, d) features, m >= 2.

    Returns:
        See `frechet_from_moments`.

    Raises:
        ValueError: if dimensions differ, rows are too few, or a value is not finite (naming the row).

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> frechet_distance(x, x + 3.0)
        9.0
    """
    x, y = check_pair(x, y)
    return frechet_from_moments(*moments(x), *moments(y))


@dataclass(frozen=True)
class KID:
    """Kernel inception distance.

    Attributes:
        mean: the estimate (over all samples, or averaged over the subsets); may be negative.
        std: standard deviation over the subsets; None without subsets.
    """

    mean: float
    std: float | None


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def kid_within(y: Tensor, chunk: int = 512) -> float:
    """The part of `kid(x, y)` that is the same for every x, for its argument `within`.

    Args:
        y: (m, d) features, m >= 2.
        chunk: as of `kid`.

    Raises:
        ValueError: on bad inputs, naming the row of a non-finite value.

    Example:
        >>> kid_within(torch.tensor([[1.0], [1.0]]))
        8.0
    """
    return mean_within(check_samples("y", y, 2), _cubic, chunk)


def kid(
    x: Tensor,
    y: Tensor,
    *,
    subsets: int | None = None,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
    chunk: int = 512,
    within: float | None = None,
) -> KID:
    """Unbiased MMD² under the polynomial kernel `k(a, b) = (a·b / d + 1)³`.

    Args:
        x: (n, d) features, n >= 2.
        y: (m, d) features, m >= 2.
        subsets: how many random subsets to average over; None uses all the samples at once.
        subset_size: rows of a subset, drawn from each side without replacement.
        generator: draws the subsets.
        chunk: the kernel matrix is summed by blocks of `chunk` by `chunk`.
        within: `kid_within(y)`, where many x are compared with one y; without subsets only.

    Raises:
        ValueError: on bad inputs (naming the row of a non-finite value), or subsets larger than the samples or
            given together with `within`.

    References:
        Bińkowski et al. 2018, 1801.01401.

    Example:
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> abs(kid(x[:100], x[100:]).mean) < 0.1, kid(x, x + 2.0).mean > 1.0
        (True, True)
    """
    x, y = check_pair(x, y)
    if subsets is None:
        return KID(unbiased_mmd2(x, y, _cubic, chunk, within), None)
    if within is not None:
        raise ValueError("within is of all samples, and subsets have others: give one of the two")
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets}")
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(f"subset_size must lie in 2 .. {min(len(x), len(y))}, got {subset_size}")

    def draw(a: Tensor) -> Tensor:
        device = a.device if generator is None else generator.device
        return a[torch.randperm(len(a), generator=generator, device=device)[:subset_size].to(a.device)]

    values = torch.tensor([unbiased_mmd2(draw(x), draw(y), _cubic, chunk) for _ in range(subsets)])
    return KID(float(values.mean()), float(values.std(correction=0)))
