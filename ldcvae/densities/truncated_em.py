"""EM steps in which a row has shares in a few components only: for mixtures of hundreds, of which few are near.

A step of plain EM costs n·K·d² operations, nearly all of them spent on shares that are nothing. Here every row keeps
its likeliest components, the candidates, and a step looks at those: each component's rows are gathered, so that it
is K small products of n·C·d² operations together. While candidates stay, a step never lowers the sum over rows of the
log of the candidates' joint densities, a lower bound of the log likelihood (Lücke & Eggert 2010, Expectation
truncation and the benefits of preselection; Forster & Lücke 2018, 1711.03431).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["WIDTH", "Candidates", "Parameters", "fit_truncated", "pays", "truncated_step"]

WIDTH = 6  # components that a row has shares in
_LEAST_DIM = 48  # below, a plain step's one product takes no longer than K small ones
_STEPS = 8  # between two looks at all components


class Parameters(NamedTuple):
    """Of a mixture: weights (K,), means (K, d), covariances (K, d, d)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


class Candidates(NamedTuple):
    """The components that rows (n, C) have shares in, sorted by component.

    Attributes:
        rows: a component's rows, for each component.
        places: of these pairs among all n·C, row by row.
        width: C.
    """

    rows: tuple[Tensor, ...]
    places: tuple[Tensor, ...]
    width: int

    @classmethod
    def of(cls, components: Tensor, count: int) -> "Candidates":
        """Of (n, C) numbers of components, of which there are `count`."""
        flat = components.reshape(-1)
        order = flat.argsort(stable=True)
        sizes = flat.bincount(minlength=count).tolist()
        width = components.shape[1]
        return cls((order // width).split(sizes), order.split(sizes), width)


def pays(dim: int, components: int) -> bool:
    """Whether truncated steps are cheaper than plain ones, n·d²·C operations rather than n·d²·K.

    Example:
        >>> pays(64, 300), pays(16, 300), pays(64, 10)
        (True, False, False)
    """
    return dim >= _LEAST_DIM and components >= 8 * WIDTH


def fit_truncated(
    data: Tensor,
    variances: Tensor | None,
    labels: Tensor,
    preselect: Callable[[Parameters], Tensor],
    *,
    components: int,
    max_steps: int,
    tolerance: float,
    ridge: float,
) -> Parameters:
    """EM by truncated steps, candidates chosen anew every eight of them, until neither gains more than `tolerance`.

    Args:
        data: (n, d) rows, float64.
        variances: (n, d) of the rows, or None.
        labels: (n,) components to start from.
        preselect: parameters -> (n, C) numbers of each row's likeliest components.
        components: K.
        max_steps: at most.
        tolerance: gain of the bound, in nats a row and step, below which the fit has converged.
        ridge: added to the variances.

    Returns:
        Weights, means and covariances.
    """
    k, d = components, data.shape[1]
    unit = torch.eye(d).to(data).expand(k, d, d)
    start = Parameters(data.new_full((k,), 1.0 / k), data.new_zeros(k, d), unit)
    parameters, _ = truncated_step(data, variances, start, Candidates.of(labels[:, None], k), ridge)
    last, done = -math.inf, 0
    while done < max_steps:
        candidates = Candidates.of(preselect(parameters), k)
        for step in range(min(_STEPS, max_steps - done)):
            parameters, bound = truncated_step(data, variances, parameters, candidates, ridge)
            gain, last, done = bound - last, bound, done + 1
            if abs(gain) < tolerance:
                if step == 0:  # nor did other candidates help
                    return parameters
                break
    return parameters


def truncated_step(
    data: Tensor, variances: Tensor | None, old: Parameters, candidates: Candidates, ridge: float
) -> tuple[Parameters, float]:
    """One EM step, each row with shares in its candidates.

    Args:
        data: (n, d) rows, float64.
        variances: (n, d) of the rows, as of `ldcvae.densities.em.fit_mixture`.
        old: parameters.
        candidates: of the rows.
        ridge: added to the variances.

    Returns:
        The new parameters, and the mean over rows of the bound before the step.

    Example:
        >>> z = torch.tensor([[-1.0], [1.0], [9.0], [11.0]]).double()
        >>> old = Parameters(torch.tensor([0.5, 0.5]).double(), z[1:3], torch.ones(2, 1, 1).double())
        >>> new, _ = truncated_step(z, None, old, Candidates.of(torch.tensor([[0], [0], [1], [1]]), 2), 0.0)
        >>> [round(float(mean), 6) for mean in new.means], new.covariances[:, 0, 0].tolist()
        ([0.0, 10.0], [1.0, 1.0])
    """
    d = data.shape[1]
    factors = torch.linalg.cholesky(old.covariances)
    inverses = torch.linalg.solve_triangular(factors, torch.eye(d).to(data).expand_as(factors), upper=False)
    diagonals = inverses.square().sum(1)  # of the precisions
    constants = old.weights.log() - factors.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * d * math.log(2 * math.pi)
    pairs = list(zip(candidates.rows, candidates.places, strict=True))
    log_joint = data.new_empty(len(data) * candidates.width)
    for k, (rows, places) in enumerate(pairs):
        white = (data[rows] - old.means[k]) @ inverses[k].T
        values = white.square_().sum(1)
        if variances is not None:
            values += variances[rows] @ diagonals[k]
        log_joint[places] = constants[k] - 0.5 * values
    log_joint = log_joint.view(len(data), -1)
    sums = log_joint.logsumexp(1, keepdim=True)
    # As in `ldcvae.densities.em`: no denormal numbers.
    shares = log_joint.sub_(sums).clamp_(min=-100.0).exp_().view(-1)
    weights, means, covariances = (part.clone() for part in old)
    for k, (rows, places) in enumerate(pairs):
        some, x = shares[places], data[rows] - old.means[k]
        count = some.sum() + 10 * torch.finfo(data.dtype).eps
        some = some / count
        shift = some @ x
        covariance = (x * some[:, None]).T @ x - torch.outer(shift, shift)
        spread = shift.new_full((d,), ridge) if variances is None else some @ variances[rows] + ridge
        weights[k] = count
        if len(rows):  # else it stays where it was, with no weight
            means[k] += shift
            covariances[k] = covariance + spread.diag()
    return Parameters(weights / weights.sum(), means, covariances), float(sums.mean())
