"""Directions and scores where float32 is narrow: points far from the origin, sides far apart; and their gradients."""

import pytest
import torch

from ldcvae.densities import GaussianMixture, KernelMixture
from ldcvae.densities.low_rank import LowRankMixture
from ldcvae.directions import blocks
from ldcvae.directions.stein import particle_direction, stein_direction
from ldcvae.directions.two_sample import drift, score_difference
from ldcvae.encodings import Encodings
from ldcvae.metrics import kernel_stein_discrepancy


def _points(seed, n=300, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


DIRECTIONS = {
    "stein": lambda z, y: stein_direction(z, 1e4 - z, [0.5]),
    "score_difference": lambda z, y: score_difference(z, y, [0.5, 1.0]),
    "smooth": lambda z, y: score_difference(z, y, [0.5, 1.0], smooth=True),
    "drift": lambda z, y: drift(z, y, [0.3, 1.0]),
    "particles": lambda z, y: particle_direction(z.view(50, 6, 4), (y - z).view(50, 6, 4), torch.full((50, 4), 0.5)),
    "discrepancy": lambda z, y: kernel_stein_discrepancy(z, y - z),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_far_from_the_origin_float32_is_as_good_as_near_it(name):
    far_z, far_y = _points(0) + 1e4, _points(1) + 1e4
    wanted = DIRECTIONS[name](far_z.double(), far_y.double())
    found = DIRECTIONS[name](far_z, far_y)
    assert found.dtype == torch.float32
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.parametrize("gap", [20, 50, 70])
def test_drift_has_unit_size_where_the_sides_are_many_temperatures_apart(gap):
    z, y = 0.1 * _points(0, 64, 2), 0.1 * _points(1, 64, 2)
    direction = drift(z, y + torch.tensor([gap * 0.5, 0.0]), [0.5])
    assert float(direction.square().mean().sqrt()) == pytest.approx(1.0, rel=1e-3)


def test_scores_have_gradients():
    z = _points(0, 5, 2).double().requires_grad_()
    means = _points(1, 3, 2).double()
    eye = torch.eye(2).double().repeat(3, 1, 1)
    for density in (
        GaussianMixture(torch.ones(3).double(), means, eye),
        KernelMixture(means, torch.zeros_like(means)),
        LowRankMixture(torch.ones(3).double(), means, eye[:, :, :1], torch.ones_like(means)),
    ):
        assert torch.autograd.gradcheck(density.score, z)


def test_the_discrepancy_is_the_same_in_blocks(monkeypatch):
    z = _points(0)
    whole = kernel_stein_discrepancy(z, -z)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**16)
    assert float(kernel_stein_discrepancy(z, -z)) == pytest.approx(float(whole), rel=1e-5)


def test_the_aggregate_posterior_of_one_image_is_its_own():
    whitening = Encodings(torch.ones(1, 2), torch.log(torch.tensor([[1.0, 4.0]]))).whitening()
    assert torch.allclose(whitening.matrix, torch.diag(torch.tensor([1.0, 0.5])))
