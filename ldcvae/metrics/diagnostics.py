"""Does a set of particles follow its target or has it collapsed?"""

from torch import Tensor

from ldcvae.directions.blocks import row_blocks
from ldcvae.directions.kernels import distances_to

__all__ = ["kernel_stein_discrepancy", "stein_ratio", "variance_ratio"]

_MATRICES = 9  # (queries, n), alive at the worst moment


def stein_ratio(particles: Tensor, score: Tensor) -> Tensor:
    """Stein's identity as a collapse gauge: `-E[<s(z), z - mean>] / d`, 1 when the particles follow the target.

    For Gaussians it is `trace(Σ_p⁻¹ Σ_q) / d`: below 1 the particles are too narrow, above too wide.

    Args:
        particles: (n, d).
        score: (n, d) score of the target at the particles.

    Example:
        >>> import torch
        >>> z = 0.5 * torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
        >>> round(float(stein_ratio(z, -z)), 2)  # half the standard deviation of N(0, I): a quarter
        0.25
    """
    return -(score * (particles - particles.mean(0))).sum(1).mean() / particles.shape[1]


def variance_ratio(particles: Tensor, targets: Tensor) -> Tensor:
    """Total variance of the particles over that of the targets; SVGD's collapse shows as a value below 1.

    Example:
        >>> import torch
        >>> float(variance_ratio(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])))
        0.25
    """
    return particles.var(0).sum() / targets.var(0).sum()


def kernel_stein_discrepancy(particles: Tensor, score: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Squared kernel Stein discrepancy with the IMQ kernel, unbiased U-statistic.

    `KSD² = E_{z,z'~q}[ s·s' k + s·∇_{z'}k + s'·∇_z k + tr ∇_z∇_{z'} k ]`, `k = (1 + r²/h²)^(-1/2)`: zero in
    expectation exactly when q is the target, and it controls weak convergence (1703.01717). In float64, by blocks.

    Args:
        particles: (n, d), n >= 2.
        score: (n, d) score of the target at the particles.
        bandwidth: h, in the units of the particles.

    Returns:
        0-d tensor; may be slightly negative, as unbiased estimates of zero are.

    Raises:
        ValueError: with fewer than two particles.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.randn(500, 2, generator=g)
        >>> bool(kernel_stein_discrepancy(z, -z) < 0.05 < kernel_stein_discrepancy(z + 1, -(z + 1)))
        True
    """
    n, d = particles.shape
    if n < 2:
        raise ValueError(f"kernel_stein_discrepancy needs at least 2 particles, got {n}")
    # Translation changes nothing, and far from the origin products would lose the differences.
    z, s = (particles - particles.mean(0)).double(), score.double()
    h2, along, squares_of = bandwidth**2, (s * z).sum(1), distances_to(z)
    total = z.new_zeros(())
    for block in row_blocks(n, n, _MATRICES, z):
        squares = squares_of(z[block])
        base = 1.0 + squares / h2
        value, slope = base.rsqrt(), base.pow(-1.5) / -h2
        # s_i·∇_{z_j}k = -slope s_i·(z_i - z_j), and s_j·∇_{z_i}k = slope s_j·(z_i - z_j).
        cross = -slope * (along[block, None] - s[block] @ z.T + along - z[block] @ s.T)
        trace = -d * slope - 3.0 * squares * base.pow(-2.5) / h2**2
        total = total + (value * (s[block] @ s.T) + cross + trace).sum()
    own = s.square().sum() + n * d / h2  # of pairs of a particle with itself
    return ((total - own) / (n * (n - 1))).to(particles.dtype)
