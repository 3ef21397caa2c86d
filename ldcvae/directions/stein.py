"""Stein variational gradient descent: directions from the target's score, particle updates.

All directions estimate one population field, `φ(z) = E_{z'~q}[k(z', z) s(z') + ∇_{z'} k(z', z)]`, with
`s = ∇ log p` the score of the target (Liu & Wang 2016, 1608.04471, eq. 8). Those here need the score;
`ldcvae.directions.two_sample` has those that need draws of the target only.

Everything is in matmul form: no (n, n, d) tensor is ever made, and of the (n, n) matrices only a block of queries at
a time (`ldcvae.directions.blocks`), so that memory grows with n and not with n². For data-parallel use each direction
takes the whole particle set and `rows`, the slice of queries that this rank owns.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldcvae.directions.blocks import own_positions, row_blocks
from ldcvae.directions.kernels import Kernel, distances_to, get_kernel, median_distance

__all__ = [
    "ALL",
    "amortised_loss",
    "check_bandwidths",
    "particle_direction",
    "stein_direction",
    "svgd",
]

ALL = slice(None)
_MATRICES = 6  # (queries, n), alive at the worst moment of `stein_direction`: in the slope of the Laplace kernel


def check_bandwidths(bandwidths: Sequence[float | Tensor]) -> None:
    """Raise ValueError unless there is a bandwidth and all are positive."""
    if len(bandwidths) == 0:
        raise ValueError("bandwidths is empty: give at least one positive number")
    for bandwidth in bandwidths:
        # A tensor stays on its device: looking at its value would make the host wait for it.
        if not isinstance(bandwidth, Tensor) and not bandwidth > 0:
            raise ValueError(f"bandwidths must be positive, got {bandwidth}")


def stein_direction(
    particles: Tensor,
    score: Tensor,
    bandwidths: Sequence[float | Tensor],
    kernel: Kernel | str = "rbf",
    *,
    self_term: bool = True,
    normalise: bool = False,
    rows: slice = ALL,
) -> Tensor:
    """Classical SVGD direction at the particles, averaged over bandwidths.

    `φ(zⱼ) = 1/n Σᵢ [k(zᵢ, zⱼ) s(zᵢ) + ∇_{zᵢ} k(zᵢ, zⱼ)]` (1608.04471, eq. 8).

    Particles that are moved and kept (plain SVGD) keep the term i = j. Amortised draws must leave it out
    (`self_term=False`, the sum is divided by n - 1): fresh i.i.d. draws make that estimate unbiased, while the
    self term pulls every draw to the mode and the variance collapses.

    Args:
        particles: (n, d) all particles.
        score: (n, d) score of the target at the particles.
        bandwidths: kernel bandwidths h, in the units of the particles.
        kernel: a `Kernel` or its name.
        self_term: whether i = j takes part.
        normalise: divide by the mean kernel value over pairs, which makes the step independent of how many
            neighbours a bandwidth reaches.
        rows: the queries j to return, by default all.

    Returns:
        (len(rows), d) direction of steepest KL descent.

    Raises:
        ValueError: if a bandwidth is not positive, or there are too few particles to leave one out.

    Example:
        >>> z = torch.tensor([[1.0], [-1.0]])
        >>> stein_direction(z, score=-z, bandwidths=[1.0])  # pulled in by the score, pushed apart by the kernel
        tensor([[-0.2970],
                [ 0.2970]])
    """
    check_bandwidths(bandwidths)
    chosen = get_kernel(kernel) if isinstance(kernel, str) else kernel
    n = particles.shape[0]
    if not self_term and n < 2:
        raise ValueError("self_term=False needs at least 2 particles")
    particles = particles - particles.mean(0)  # differences are made of sums, which far from the origin lose them
    # The kernel mass is a property of the whole set, so normalising needs all pairs on every rank.
    at = ALL if normalise else rows
    queries, columns = particles[at], torch.arange(n, device=particles.device)[at]
    sums = [torch.zeros_like(queries) for _ in bandwidths]
    blocks = row_blocks(len(queries), n, _MATRICES, particles)
    # Made beforehand: what a block left between its freed matrices would keep glibc from joining them.
    masses = particles.new_zeros(len(bandwidths), len(blocks))
    zero = particles.new_zeros(())

    # A scope of its own, so that one bandwidth's matrices are gone before the next one's are made.
    def add(which: int, number: int, squares: Tensor) -> None:
        bandwidth, block = bandwidths[which], blocks[number]
        own = own_positions(columns[block])
        value = chosen.value(squares, bandwidth)
        # slope · (zⱼ - zⱼ) is zero, but a cusped kernel's slope is huge there and rounding would not cancel.
        slope = chosen.slope(squares, bandwidth, value).index_put_(own, zero)
        if not self_term:
            value.index_put_(own, zero)
        sums[which][block] = value @ score + slope @ particles - slope.sum(1, keepdim=True) * queries[block]
        if normalise:
            masses[which, number] = value.sum()

    squares_of = distances_to(particles)
    for number, block in enumerate(blocks):
        squares = squares_of(queries[block])
        for which in range(len(bandwidths)):
            add(which, number, squares)
    count = n if self_term else n - 1
    direction = torch.zeros_like(queries)
    least = torch.finfo(masses.dtype).tiny  # a bandwidth that reaches nobody moves nobody
    for phi, mass in zip(sums, masses, strict=True):
        direction += phi / ((mass.sum() / n).clamp(min=least) if normalise else count)
    return (direction[rows] if normalise else direction) / len(bandwidths)


def particle_direction(particles: Tensor, score: Tensor, variance: Tensor) -> Tensor:
    """SVGD direction inside many small groups at once: the M posterior particles of each image.

    RBF kernel, the self term left out, divided by the expected kernel value. The bandwidth is the expected squared
    distance of two draws, `h² = 2 Σ_k σ_k²`, from the encoder's own variance and not from the few particles: a
    bandwidth or a mass measured on the same M draws is correlated with them, and an encoder trained on that ends
    up with a third too much variance at M = 4. With both fixed the estimate is unbiased for any M. With the self
    term in, the encoder collapses to a point.

    Args:
        particles: (B, M, d) draws of diagonal Gaussians, M >= 2.
        score: (B, M, d) score of each image's Gibbs posterior at its particles.
        variance: (B, d) variances of those Gaussians.

    Returns:
        (B, M, d) direction.

    Raises:
        ValueError: if M < 2; one particle has nothing to be repelled from, use the ELBO objective.

    Example:
        >>> z = torch.randn(5, 4, 2)
        >>> particle_direction(z, -z, torch.ones(5, 2)).shape
        torch.Size([5, 4, 2])
    """
    m = particles.shape[-2]
    if m < 2:
        raise ValueError(f"SVGD among the particles of one image needs M >= 2, got {m}: use the ELBO for M = 1")
    square = 2.0 * variance.sum(1)[:, None, None]
    # z - z' ~ N(0, 2σ²), so E exp(-|z - z'|²/2h²) is a product over dimensions.
    mass = (1.0 + 2.0 * variance / square[:, 0]).rsqrt().prod(1)[:, None, None] * (m - 1)
    # M is a handful, so the (B, M, M) distances are small, and differences are exact where matmul form is not.
    squares = torch.cdist(particles, particles, compute_mode="donot_use_mm_for_euclid_dist").square()
    value = torch.exp(squares / (-2.0 * square))
    value = value - torch.diag_embed(torch.diagonal(value, dim1=-2, dim2=-1))
    near = particles - particles.mean(1, keepdim=True)  # as in `stein_direction`
    repulsion = value.sum(-1, keepdim=True) * near - value @ near
    return (value @ score + repulsion / square) / mass


def amortised_loss(draws: Tensor, direction: Tensor) -> Tensor:
    """Loss whose gradient moves the net that made `draws` along `direction`: `-meanⱼ <zⱼ, stopgrad(φⱼ)>`.

    Wang & Liu 2016 (1611.01722), eq. 9; Feng et al. 2017 (1707.06626).

    Args:
        draws: (n, d), attached to the net.
        direction: (n, d), treated as a constant.

    Example:
        >>> z = torch.zeros(2, 1, requires_grad=True)
        >>> amortised_loss(z, torch.ones(2, 1)).backward()
        >>> z.grad
        tensor([[-0.5000],
                [-0.5000]])
    """
    return -(draws * direction.detach()).sum(-1).mean()


def svgd(
    particles: Tensor,
    score: Callable[[Tensor], Tensor],
    *,
    steps: int = 500,
    step_size: float = 0.1,
    bandwidths: Sequence[float] | None = None,
    kernel: Kernel | str = "rbf",
) -> Tensor:
    """Plain SVGD of kept particles, with Adam steps.

    Args:
        particles: (n, d) starting points; not modified.
        score: `z (n, d) -> ∇ log p(z) (n, d)`.
        steps: number of updates.
        step_size: Adam's learning rate, decayed linearly to zero.
        bandwidths: fixed bandwidths, or None for the median rule `h² = median² / (2 log(n + 1))` of
            1608.04471, renewed every step and taken over 2048 evenly spaced particles at most.
        kernel: a `Kernel` or its name.

    Returns:
        (n, d) particles distributed like the target.

    Raises:
        ValueError: on bad bandwidths or an unknown kernel.

    Example:
        >>> z = svgd(torch.randn(50, 1, generator=torch.Generator().manual_seed(0)), lambda z: 3.0 - z, steps=300)
        >>> bool((z.mean() - 3.0).abs() < 0.1)
        True
    """
    z = particles.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=step_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / max(steps, 1))
    for _ in range(steps):
        points = z.detach()
        widths: Sequence[float | Tensor] | None = bandwidths
        if widths is None:
            # Of one particle, which nothing repels, any.
            median = median_distance(points) if len(points) > 1 else torch.ones(())
            widths = [(median / math.sqrt(2.0 * math.log(len(points) + 1.0))).clamp(min=1e-6)]
        z.grad = -stein_direction(points, score(points), widths, kernel)
        optimizer.step()
        schedule.step()
    return z.detach()
