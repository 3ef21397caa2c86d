"""Directions from two samples, the particles and draws of the target, where the target's score is not known.

Both estimate the field of `ldcvae.directions.stein`, target and particles each with its score from a kernel density
estimate:

`score_difference`
    their difference in mean-shift form (the GFSD / Blob members of the SVGD family, Liu et al. 2019, 1807.01750).
`drift`
    the same with a Laplace kernel whose weights are normalised over both axes, which keeps it stable in higher
    dimension (drifting models, 2602.04770).

In matmul form, with `rows` as in `ldcvae.directions.stein`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldcvae.directions.kernels import squared_distances
from ldcvae.directions.stein import ALL, check_bandwidths, own_positions

__all__ = ["drift", "score_difference"]


def _check_counts(particles: Tensor, targets: Tensor) -> None:
    if particles.shape != targets.shape:
        raise ValueError(
            f"particles {tuple(particles.shape)} and targets {tuple(targets.shape)} must have equal counts and "
            "dimensions: with unequal counts the field is biased even when both laws are equal"
        )
    if len(particles) < 2:
        raise ValueError("needs at least 2 particles, since each leaves its own draw out")


def _mean_shift(squares: Tensor, bandwidth: float | Tensor, points: Tensor) -> Tensor:
    return torch.softmax(squares / (-2.0 * bandwidth**2), dim=1) @ points


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
    the two laws are equal, which needs equal counts.

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
        >>> score_difference(z, y, [1.0])  # each particle is sent from the other particle to the other target
        tensor([[5.],
                [5.]])
    """
    check_bandwidths(bandwidths)
    _check_counts(particles, targets)
    # Smoothing averages the field over all particles, so then every rank needs the field at all of them.
    at = ALL if smooth else rows
    own = own_positions(len(particles), at, particles.device)
    infinity = particles.new_full((), float("inf"))
    to_particles = squared_distances(particles[at], particles)
    to_targets = squared_distances(particles[at], targets).index_put(own, infinity)
    to_others = to_particles.index_put(own, infinity)
    direction = torch.zeros_like(particles[rows])
    for bandwidth in bandwidths:
        field = _mean_shift(to_targets, bandwidth, targets) - _mean_shift(to_others, bandwidth, particles)
        direction += _mean_shift(to_particles[rows], bandwidth, field) if smooth else field
    return direction / len(bandwidths)


def drift(
    particles: Tensor,
    targets: Tensor,
    temperatures: Sequence[float | Tensor],
    *,
    rows: slice = ALL,
) -> Tensor:
    """Drifting field: Laplace-kernel score difference normalised jointly over both sides and along both axes.

    With `A = sqrt(softmax_rows(L) · softmax_columns(L))`, `L = -|zⱼ - y| / T` over targets and particles
    together, the weights are `W_p = A_p · rowsum(A_q)` and `W_q = A_q · rowsum(A_p)`, the field
    `V = W_p y - W_q z` (2602.04770, algorithm 2). Each temperature's field is scaled to unit RMS before
    averaging. Antisymmetric in the two sides: zero in expectation when the laws are equal.

    Args:
        particles: (n, d) draws of the sampler.
        targets: (n, d) draws of the target, as many as particles.
        temperatures: T, in the units of the particles.
        rows: the queries j to return, by default all. The normalisation over columns needs all rows, so the
            whole field is computed on every rank.

    Returns:
        (len(rows), d) direction.

    Raises:
        ValueError: on unequal counts, fewer than two particles or a temperature that is not positive.

    Example:
        >>> z, y = torch.tensor([[0.0], [0.1]]), torch.tensor([[5.0], [5.1]])
        >>> bool((drift(z, y, [1.0, 2.0]) > 0).all())
        True
    """
    check_bandwidths(temperatures)
    _check_counts(particles, targets)
    n = len(particles)
    own = own_positions(n, ALL, particles.device)
    infinity = particles.new_full((), float("inf"))
    distances = torch.cat(
        [squared_distances(particles, side).sqrt().index_put(own, infinity) for side in (targets, particles)],
        dim=1,
    )
    direction = torch.zeros_like(particles)
    for temperature in temperatures:
        logits = distances / -temperature
        log_rows, log_columns = logits.logsumexp(1, keepdim=True), logits.logsumexp(0, keepdim=True)
        weights = torch.exp(logits - 0.5 * (log_rows + log_columns))
        of_targets, of_particles = weights[:, :n], weights[:, n:]
        field = (of_targets @ targets) * of_particles.sum(1, keepdim=True)
        field -= (of_particles @ particles) * of_targets.sum(1, keepdim=True)
        direction += field / field.square().mean().sqrt().clamp(min=1e-12)
    return direction[rows] / len(temperatures)
