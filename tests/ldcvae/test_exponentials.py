"""Exponentials without denormal numbers: what they are elsewhere, and that directions and scores have none."""

import math

import pytest
import torch

from ldcvae.densities import KernelMixture
from ldcvae.directions import kernels, two_sample
from ldcvae.directions.two_sample import score_difference
from ldcvae.exponentials import exp_or_zero, least_exponent, softmax_or_zero


def logits(dtype: torch.dtype, rows: int = 40) -> torch.Tensor:
    """Rows that go from 0 to far below what has an exponential, each from another offset."""
    far = 2 * math.log(torch.finfo(dtype).tiny)
    return torch.linspace(0.0, far, 5000, dtype=dtype) + torch.linspace(-30.0, 50.0, rows, dtype=dtype)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_denormal_and_the_rest_is_as_it_was(dtype: torch.dtype) -> None:
    given, tiny = logits(dtype), torch.finfo(dtype).tiny
    for ours, plain in (
        (softmax_or_zero(given.clone()), given.softmax(1)),
        (exp_or_zero(given.clamp(max=0.0)), given.clamp(max=0.0).exp()),
    ):
        assert float(ours[ours > 0].min()) >= tiny
        assert bool(((plain > 0) & (plain < tiny)).any())  # or the test would show nothing
        large = plain > tiny * math.exp(9.0)
        assert torch.equal(ours[large], plain[large])
        assert float((ours - plain).abs().max()) <= tiny * math.exp(9.0)


def test_a_row_without_anything_is_as_softmax_has_it() -> None:
    empty = torch.tensor([[-math.inf, -math.inf], [-math.inf, 3.0]])
    shares = softmax_or_zero(empty)
    assert shares[0].isnan().all()
    assert shares[1].tolist() == [0.0, 1.0]


def test_near_logits_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "amax", None)
    assert softmax_or_zero(torch.tensor([[0.0, -60.0]]), most=60.0)[0, 1] > 0
    with pytest.raises(TypeError):
        softmax_or_zero(torch.tensor([[0.0, -60.0]]), most=-least_exponent(torch.float32))


@pytest.mark.parametrize("smooth", [False, True])
def test_directions_and_scores_are_the_same_as_with_denormals(monkeypatch: pytest.MonkeyPatch, smooth: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    particles, targets = (torch.randn(200, 16, generator=generator) for _ in range(2))
    density = KernelMixture(targets, floor=0.3)

    def found() -> list[torch.Tensor]:
        return [
            score_difference(particles, targets, [0.3, 1.0], smooth=smooth),
            density.score(particles),
            kernels.get_kernel("rbf").value(torch.linspace(0, 300, 100), 1.0),
        ]

    ours = found()
    monkeypatch.setattr(two_sample, "softmax_or_zero", lambda given, most: given.softmax(1))
    monkeypatch.setattr("ldcvae.densities.kernel_mixture.softmax_or_zero", lambda given: given.softmax(1))
    monkeypatch.setattr(kernels, "exp_or_zero", torch.exp)
    for one, plain in zip(ours, found(), strict=True):
        torch.testing.assert_close(one, plain, rtol=1e-6, atol=1e-30)


def test_the_bound_of_distances_bounds_them() -> None:
    noise = torch.Generator().manual_seed(0)
    points, others = (torch.randn(60, 4, generator=noise, dtype=torch.float64) + shift for shift in (3.0, 0.0))
    for one, other in ((points, others), (points, -points)):  # of the second it is the largest distance itself
        assert two_sample._farthest(one, other) * (1 + 1e-9) >= float(torch.cdist(one, other).square().max())
