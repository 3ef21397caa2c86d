"""Directions from two samples, the particles and draws of the target, where the target's score is not known.

Neither is the field of `ldcvae.directions.stein`. Where the two laws agree `score_difference` vanishes in
expectation, `drift` up to a term that falls with n, below the noise of a few hundred particles:

`score_difference`
    h² times the difference of both laws' scores, each of a kernel density estimate, in mean-shift form: GFSD, the
    member of the SVGD family without its last smoothing (Liu et al. 2019, 1807.01750); `smooth` adds that, and with
    it a pull inwards, since near particles' fields hold the particle that they move.
`drift`
    mean shift towards targets minus mean shift towards particles with Laplace weights that are normalised over both
    sides and both axes (drifting models, 2602.04770): stable in higher dimension, and no difference of two scores.

In matmul form and by blocks of queries, with `rows` as in `ldcvae.directions.stein`.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ldcvae.directions.blocks import own_positions, row_blocks
from ldcvae.directions.kernels import distances_to
from ldcvae.directions.stein import ALL, check_bandwidths
from ldcvae.exponentials import softmax_or_zero

__all__ = ["drift", "score_difference"]

Gather = Callable[[Tensor], Tensor]

# Matrices alive at the worst moment, (queries, n) and for drift (queries, 2n).
_SCORE_MATRICES, _DRIFT_MATRICES = 5, 4


def _check_counts(particles: Tensor, targets: Tensor) -> None:
    if particles.shape != targets.shape:
        raise ValueError(
            f"particles {tuple(particles.shape)} and targets {tuple(targets.shape)} must have equal counts and "
            "dimensions: with unequal counts the field is biased even when both laws are equal"
        )
    if len(particles) < 2:
        raise ValueError("needs at least 2 particles, since each leaves its own draw out")


def _centred(particles: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both about the particles' mean: sums of points far from the origin would lose their difference to rounding."""
    centre = particles.mean(0)
    return particles - centre, targets - centre


def _mean_shift(squares: Tensor, bandwidth: float | Tensor, points: Tensor, farthest: float) -> Tensor:
    """(queries, d) means of the points, weighted by a kernel; no squared distance is above `farthest`."""
    scale = 2.0 * bandwidth**2
    most = farthest / float(scale) if math.isfinite(farthest) else math.inf
    return softmax_or_zero(squares / -scale, most) @ points


def _farthest(*sets: Tensor) -> float:
    """A bound of all squared distances between rows; on a GPU, where the host would wait for it, infinity."""
    if sets[0].is_cuda:
        return math.inf
    return 4.0 * max(float(points.square().sum(1).amax()) for points in sets)


def score_difference(
    particles: Tensor,
    targets: Tensor,
    bandwidths: Sequence[float | Tensor],
    *,
    smooth: bool = False,
    rows: slice = ALL,
) -> Tensor:
    """Difference of two kernel-density scores in mean-shift form, averaged over bandwidths.

    `V_h(zⱼ) = m_{p,h}(zⱼ) - m_{q,h}(zⱼ)` with `m` the `softmax(-|zⱼ - y|²/2h²)`-weighted mean: h² times the
    difference of the scores of both densities smoothed with one kernel (1807.01750, GFSD). Query j sees neither
    its own particle nor target j, so both sides have n - 1 points and the field vanishes in expectation when
    the two laws are equal, which needs equal counts. With `smooth` it does not: at kernels of one nearest-neighbour
    distance in 16 dimensions it is at rest where particles have three quarters of the targets' variance.

    Args:
        particles: (n, d) draws of the sampler.
        targets: (n, d) draws of the target, as many as particles.
        bandwidths: in the units of the particles.
        smooth: average the field over the particles with the same kernel, self included, weights normalised:
            the population SVGD direction divided by the kernel mass.
        rows: the queries j to return, by default all.

    Returns:
        (len(rows), d) direction.

    Raises:
        ValueError: on unequal counts, fewer than two particles or a bandwidth that is not positive.

    Example:
        >>> z, y = torch.tensor([[0.0], [0.1]]), torch.tensor([[5.0], [5.1]])
        >>> field = score_difference(z, y, [1.0])  # each particle is sent from the other particle to the other target
        >>> field.round(decimals=4)
        tensor([[5.],
                [5.]])
    """
    check_bandwidths(bandwidths)
    _check_counts(particles, targets)
    particles, targets = _centred(particles, targets)
    # Smoothing averages the field over all particles, so then every rank needs the field at all of them.
    at = ALL if smooth else rows
    n = len(particles)
    queries, columns = particles[at], torch.arange(n, device=particles.device)[at]
    infinity = particles.new_full((), float("inf"))
    between, across, farthest = distances_to(particles), distances_to(targets), _farthest(particles, targets)
    direction = torch.zeros_like(particles[rows])
    fields = [torch.zeros_like(queries) for _ in bandwidths] if smooth else []
    blocks = row_blocks(len(queries), n, _SCORE_MATRICES, particles)
    for block in blocks:
        own = own_positions(columns[block])
        to_particles = between(queries[block])
        to_targets = across(queries[block]).index_put(own, infinity)
        to_others = to_particles.index_put(own, infinity)
        for i, bandwidth in enumerate(bandwidths):
            field = _mean_shift(to_targets, bandwidth, targets, farthest)
            field -= _mean_shift(to_others, bandwidth, particles, farthest)
            if smooth:
                fields[i][block] = field
            else:
                direction[block] += field
    if smooth:
        queries, once = particles[rows], len(blocks) == 1
        for block in [ALL] if once else row_blocks(len(queries), n, _SCORE_MATRICES, particles):
            squares = to_particles[rows] if once else between(queries[block])
            for bandwidth, field in zip(bandwidths, fields, strict=True):
                direction[block] += _mean_shift(squares, bandwidth, field, farthest)
    return direction / len(bandwidths)


def drift(
    particles: Tensor,
    targets: Tensor,
    temperatures: Sequence[float | Tensor],
    *,
    rows: slice = ALL,
    gather: Gather | None = None,
) -> Tensor:
    """Drifting field: Laplace-kernel score difference normalised jointly over both sides and along both axes.

    With `A = sqrt(softmax_rows(L) · softmax_columns(L))`, `L = -|zⱼ - y| / T` over targets and particles
    together, the weights are `W_p = A_p · rowsum(A_q)` and `W_q = A_q · rowsum(A_p)`, the field
    `V = W_p y - W_q z` (2602.04770, algorithm 2). Each temperature's field is scaled to unit RMS before
    averaging, which float32 can where the sides are up to some 80 T apart. Antisymmetric in the two sides but for
    the draws that queries leave out: zero in expectation when the laws are equal, up to a term that falls with n.

    Args:
        particles: (n, d) draws of the sampler.
        targets: (n, d) draws of the target, as many as particles.
        temperatures: T, in the units of the particles.
        rows: the queries j to return, by default all. The normalisation over columns needs all rows: without `gather`
            the whole field is computed, in two passes where it takes more than one block.
        gather: where several ranks each want rows of their own, all of them together: `(…) -> (ranks, …)`, the same
            tensor of every rank, stacked. Each then computes its own rows alone.

    Returns:
        (len(rows), d) direction, without a gradient of its own.

    Raises:
        ValueError: on unequal counts, fewer than two particles or a temperature that is not positive.

    Example:
        >>> z, y = torch.tensor([[0.0], [0.1]]), torch.tensor([[5.0], [5.1]])
        >>> bool((drift(z, y, [1.0, 2.0]) > 0).all())
        True
    """
    check_bandwidths(temperatures)
    _check_counts(particles, targets)
    particles, targets = _centred(particles.detach(), targets.detach())
    n, at = len(particles), ALL if gather is None else rows
    queries, columns = particles[at], torch.arange(n, device=particles.device)[at]
    infinity = particles.new_full((), float("inf"))
    sides = distances_to(targets), distances_to(particles)
    fields = [torch.zeros_like(queries) for _ in temperatures]
    blocks = row_blocks(len(queries), 2 * n, _DRIFT_MATRICES, particles)

    def gaps_of(block: slice) -> tuple[Tensor, Tensor]:
        own, some = own_positions(columns[block]), queries[block]
        distances = torch.cat([side(some).sqrt_().index_put_(own, infinity) for side in sides], dim=1)
        least = distances.amin(1, keepdim=True)
        return torch.sub(least, distances, out=distances), least

    every: list[Tensor | None] = [None] * len(temperatures)
    if len(blocks) > 1 or gather is not None:
        totals = _all_log_columns(map(gaps_of, blocks), temperatures, particles)
        if gather is not None:
            totals = gather(totals).logsumexp(0)
        every[:] = totals.to(particles.dtype)
    for block in blocks:
        gaps, least = gaps_of(block)
        weights = torch.empty_like(gaps)
        for field, temperature, log_columns in zip(fields, temperatures, every, strict=True):
            log_scale = _weigh(gaps, least, temperature, weights)
            log_rows = weights.sum(1, keepdim=True).log_().add_(log_scale)
            if log_columns is None:
                log_columns = _log_columns(weights, log_scale, gaps, temperature)
            # exp(L - (log_rows + log_columns) / 2) without another matrix: by factors of rows and columns.
            largest = log_columns.amax()
            of_rows, of_columns = log_scale - 0.5 * (log_rows + largest), 0.5 * (largest - log_columns)
            if _in_range(log_scale, largest):
                of_rows, of_columns = of_rows.exp_(), of_columns.exp_().T
            else:
                weights.log_().add_(of_rows).add_(of_columns).exp_()
                of_rows, of_columns = torch.ones_like(of_rows), torch.ones_like(of_columns).T
            near_y, mass_y = _moments(weights[:, :n], of_columns[:n], targets)
            near_z, mass_z = _moments(weights[:, n:], of_columns[n:], particles)
            field[block] = of_rows.square() * (near_y * mass_z - near_z * mass_y)
    # In double precision, in which squares of what float32 holds are not zero.
    squares = torch.stack([field.double().square().mean() for field in fields])
    if gather is not None:
        squares = gather(squares).mean(0)  # ranks have equal parts
    direction = torch.zeros_like(queries)
    scales = squares.sqrt().to(particles.dtype).clamp(min=torch.finfo(particles.dtype).tiny)
    for field, scale in zip(fields, scales, strict=True):
        direction += field / scale
    return (direction if gather is not None else direction[rows]) / len(temperatures)


_FACTOR_RANGE = 40.0  # nats; float32 has 87 on either side of 1


def _in_range(low: Tensor, high: Tensor) -> bool:
    """Whether exponentials of these logits are floating-point numbers beside each other.

    On a GPU, where the host would have to wait for the answer, and an exponential more hardly matters, never.
    """
    return not low.is_cuda and float(high.max() - low.min()) < _FACTOR_RANGE


def _weigh(gaps: Tensor, least: Tensor, temperature: float | Tensor, out: Tensor) -> Tensor:
    """`exp(L - log_scale)` (queries, 2n) into `out`, with `log_scale` (queries, 1), the largest logit L of each row.

    exp takes most of a direction's time: what needs one of L, along rows and columns, makes it of this one.
    """
    torch.div(gaps, temperature, out=out).exp_()
    return least / -temperature


def _moments(weights: Tensor, scale: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the points (queries, d) and of ones (queries, 1), weighted by (queries, n) weights and (n, 1) scale."""
    sums = weights @ torch.cat([scale * points, scale], dim=1)
    return sums[:, :-1], sums[:, -1:]


def _log_columns(weights: Tensor, log_scale: Tensor, gaps: Tensor, temperature: float | Tensor) -> Tensor:
    """(1, 2n) log-sum-exp over these rows of the logits."""
    if not _in_range(log_scale, log_scale):
        return torch.logsumexp(gaps / temperature + log_scale, 0, keepdim=True)
    largest = log_scale.amax()
    sums = torch.exp(log_scale - largest).T @ weights
    # A column of nothing is far from every row: its weights, too small now, are below 1e-10 of those of others.
    return sums.clamp_(min=torch.finfo(sums.dtype).tiny).log_().add_(largest)


def _all_log_columns(
    parts: Iterable[tuple[Tensor, Tensor]], temperatures: Sequence[float | Tensor], like: Tensor
) -> Tensor:
    """(T, 1, 2n) log-sum-exp over rows of each temperature's logits, from blocks of rows as `drift` makes them."""
    # In double precision, since each block rounds once and there may be thousands.
    totals = like.new_full((len(temperatures), 1, 2 * len(like)), -float("inf"), dtype=torch.float64)
    for gaps, least in parts:
        weights = torch.empty_like(gaps)
        for which, temperature in enumerate(temperatures):
            log_scale = _weigh(gaps, least, temperature, weights)
            part = _log_columns(weights, log_scale, gaps, temperature)
            totals[which] = torch.logaddexp(totals[which], part.double())
    return totals
