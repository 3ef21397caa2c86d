"""Precision, recall, density and coverage: who lies within whose nearest neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldcvae.directions.kernels import distances_to
from ldcvae.metrics.images import check_pair, check_samples

__all__ = ["PRDC", "ball_radii", "prdc"]

_MOST_PAIRS = 2**25  # of a matrix of distances held at a time: 256 MiB


@dataclass(frozen=True)
class PRDC:
    """Precision, recall, density and coverage.

    Attributes:
        precision: share of fakes inside some real's ball: fidelity.
        recall: share of reals inside some fake's ball: diversity.
        density: mean number of real balls a fake is in, over k: fidelity, robust to outliers; about 1 when the
            laws agree, and not bounded by 1.
        coverage: share of reals whose ball holds a fake: diversity, robust to outliers.
        k: each ball reaches to its centre's k-th nearest neighbour among its own kind.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int


def _rows(chunk: int, columns: int) -> int:
    """Rows of a matrix of distances held at a time: `chunk`, and fewer where there are many columns."""
    return max(1, min(chunk, _MOST_PAIRS // columns))


def ball_radii(real: Tensor, k: int = 5, chunk: int = 512) -> Tensor:
    """Squared distance (n,) from each row to its k-th nearest other row, for the argument `radii` of `prdc`.

    Args:
        real: (n, d) features, n > k.
        k: neighbours.
        chunk: as of `prdc`.

    Raises:
        ValueError: on bad inputs (naming the row of a non-finite value), k below 1, or too few rows for k.

    Example:
        >>> ball_radii(torch.tensor([[0.0], [1.0], [3.0]]), k=1).round().tolist()
        [1.0, 1.0, 4.0]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x = check_samples("real", real, k + 1)
    rows, distances = _rows(chunk, len(x)), distances_to(x)
    # Memory for a block once and for all: glibc does not find large aligned blocks again that it was given back.
    radii, held = x.new_empty(len(x)), x.new_empty(min(rows, len(x)), len(x))
    for start in range(0, len(x), rows):
        some = x[start : start + rows]
        squares = distances(some, held[: len(some)])
        squares.diagonal(start).fill_(float("inf"))  # a row is no neighbour of itself
        # The k smallest by topk: several times faster than kthvalue on the CPU.
        radii[start : start + rows] = squares.topk(k, dim=1, largest=False).values[:, -1]
    return radii


def prdc(real: Tensor, fake: Tensor, k: int = 5, chunk: int = 512, radii: Tensor | None = None) -> PRDC:
    """Precision, recall, density and coverage, from balls that reach to the k-th nearest neighbour.

    Args:
        real: (n, d) features, n > k.
        fake: (m, d) features, m > k.
        k: neighbours. 5 as in Naeem et al.; Kynkäänniemi et al. use 3 for precision and recall.
        chunk: rows of the matrices of distances held at a time, at most: fewer where they are long.
        radii: `ball_radii(real, k)`, where many fakes are compared with the same reals.

    Returns:
        The four figures and k. They depend on n and m: compare them only at equal counts and equal k.

    Raises:
        ValueError: on bad inputs (naming the row of a non-finite value), k < 1, or too few rows for k.

    References:
        Kynkäänniemi et al. 2019, 1904.06991 (precision, recall); Naeem et al. 2020, 2002.09797 (the others).

    Example:
        >>> real = torch.arange(10.0).unsqueeze(1)
        >>> prdc(real, real + 100.0, k=2)
        PRDC(precision=0.0, recall=0.0, density=0.0, coverage=0.0, k=2)
    """
    if k < 1 or chunk < 1:
        raise ValueError(f"k and chunk must be at least 1, got {k} and {chunk}")
    real, fake = check_pair(real, fake, least=k + 1, names=("real", "fake"))
    # Balls are closed. Squared distances in matmul form carry rounding noise relative to the squared norms,
    # and with this slack a fake that copies a real falls inside whichever way the noise goes.
    slack = 1e-12 * (real - real.mean(0)).square().sum(1).max()
    real_radii = (ball_radii(real, k, chunk) if radii is None else radii) + slack
    fake_radii = ball_radii(fake, k, chunk) + slack
    count = real.new_zeros((), dtype=torch.int64)
    recalled, covered, inside_balls = count.clone(), count.clone(), count.clone()
    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    rows, distances = _rows(chunk, len(fake)), distances_to(fake)
    held = real.new_empty(min(rows, len(real)), len(fake))
    for part, reach in zip(real.split(rows), real_radii.split(rows), strict=True):
        squares = distances(part, held[: len(part)])
        inside = squares <= reach.unsqueeze(1)
        precise |= inside.any(0)
        inside_balls += inside.sum()
        covered += inside.any(1).sum()
        recalled += (squares <= fake_radii).any(1).sum()
    return PRDC(
        precision=float(precise.double().mean()),
        recall=int(recalled) / len(real),
        density=int(inside_balls) / (k * len(fake)),
        coverage=int(covered) / len(real),
        k=k,
    )
