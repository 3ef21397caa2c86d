"""Exponentials that are zero where they would be denormal numbers.

Intel's CPUs take many times as long for a product with a denormal number, below 1.2e-38 in float32, as for another.
Kernel values of far points fall there, and a few of them make a direction or a score several times as slow. GPUs do
not mind, so that nothing is compared there.
"""

import math

import torch
from torch import Tensor

__all__ = ["exp_or_zero", "least_exponent", "softmax_or_zero"]

_HEADROOM = 8.0  # nats, for the factors by which an exponential is multiplied


def least_exponent(dtype: torch.dtype) -> float:
    """The logit whose exponential is small, yet no denormal number when it is divided by 2,980.

    Example:
        >>> round(least_exponent(torch.float32)), round(least_exponent(torch.float64))
        (-79, -700)
    """
    return math.log(torch.finfo(dtype).tiny) + _HEADROOM


def exp_or_zero(logits: Tensor) -> Tensor:
    """`exp(logits)`, zero below `least_exponent`; may overwrite the logits.

    Example:
        >>> exp_or_zero(torch.tensor([0.0, -90.0]))
        tensor([1., 0.])
    """
    if logits.is_cuda:
        return torch.exp(logits)
    return torch.exp(torch.threshold_(logits, least_exponent(logits.dtype), -math.inf))


def softmax_or_zero(logits: Tensor, most: float = math.inf) -> Tensor:
    """Softmax along rows of (n, m) logits, zero where a share is `least_exponent` below the row's largest.

    May overwrite the logits: a direction's blocks have no room for another matrix of their size.

    Args:
        logits: (n, m); infinitely low ones have no share, and a row of such has shares of nan.
        most: a bound of how far finite logits of a row lie apart, in nats: a small one saves the comparison.

    Example:
        >>> softmax_or_zero(torch.tensor([[5.0, -85.0]]))
        tensor([[1., 0.]])
    """
    least = least_exponent(logits.dtype)
    if logits.is_cuda or logits.requires_grad or most < -least:  # a gradient needs what would be overwritten
        return torch.softmax(logits, 1)
    # A threshold, which is vectorised as filling where a mask is set is not, and needs no mask.
    below = logits.sub_(logits.amax(1, keepdim=True))
    return torch.softmax(torch.threshold_(below, least, -math.inf), 1)
