"""benchmarks/beyond_mixture.py: its densities and fields against what is known."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.directions.fields import Step
from ldcvae.directions.two_sample import drift
from ldcvae.training.settings import SamplerSettings


@pytest.fixture
def routes(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import beyond_mixture

    return beyond_mixture


def mixture(dim=3):
    noise = torch.Generator().manual_seed(0)
    roots = torch.randn(4, dim, dim, generator=noise)
    means = 2 * torch.randn(4, dim, generator=noise)
    return GaussianMixture(torch.tensor([0.1, 0.2, 0.3, 0.4]), means, roots @ roots.mT + 0.1 * torch.eye(dim))


@pytest.mark.parametrize("sigma", [0.05, 1.0, 5.0])
def test_the_mixtures_denoiser_follows_the_score_of_the_smoothed_mixture(routes, sigma):
    from mixture_denoiser import MixtureDenoiser

    base, x = mixture(), 3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    by_score = x + sigma**2 * base.smoothed(sigma).score(x)  # Tweedie's formula
    assert torch.allclose(MixtureDenoiser(base)(x, torch.full((50,), sigma)), by_score, atol=1e-3)


def test_a_gain_in_nats_is_the_divergence_of_two_gaussians(routes, monkeypatch):
    import mixture_denoiser
    from mixture_denoiser import MixtureDenoiser, _nats

    monkeypatch.setattr(mixture_denoiser, "NOISE", (0.02, 50.0))
    monkeypatch.setattr(mixture_denoiser, "LEVELS", 60)
    one = torch.ones(1)
    true, wide = (GaussianMixture(one, torch.zeros(1, 2), v * torch.eye(2)[None]) for v in (1.0, 4.0))
    u = true.sample(40_000, torch.Generator().manual_seed(0))
    gain, left = _nats(MixtureDenoiser(true), MixtureDenoiser(wide), u)
    assert gain == pytest.approx(math.log(4) - 0.75, abs=0.02)  # KL(N(0, I) | N(0, 4 I)) in two dimensions
    assert min(left) < 0.9


class Shifted(torch.nn.Module):
    """What N(m, I)'s denoiser adds to N(0, I)'s, in units of the noise that is left."""

    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, x, base, sigma):
        return self.m * (sigma * (1 + sigma.square()).rsqrt())[:, None]


@pytest.mark.parametrize("dim", [8, 64])
def test_a_difference_of_denoisers_points_to_the_truth_until_draws_are_there(routes, dim):
    from mixture_denoiser import LearntDifference, MixtureDenoiser

    noise, m = torch.Generator().manual_seed(4), torch.zeros(dim)
    m[0] = 3.0
    base = MixtureDenoiser(GaussianMixture(torch.ones(1), torch.zeros(1, dim), torch.eye(dim)[None]))
    found, settings = {}, SamplerSettings()
    for where in (0.0, 1.0):  # draws at the base, draws at the truth
        learnt = LearntDifference(base, Shifted(m), seed=0)
        for _ in range(60):
            z = torch.randn(256, dim, generator=noise) + where * m
            with torch.no_grad():
                direction = learnt(Step(z, z, [], 0.0, settings))
        found[where] = direction.mean(0)
        assert direction.square().mean().sqrt() == pytest.approx(1.0, abs=1e-4)
    assert torch.cosine_similarity(found[0.0], m, dim=0) > 0.95
    assert found[1.0][0].abs() < 0.5 * found[0.0][0]  # of rms 1, so that what is left is noise


def test_drift_without_its_shortcuts_is_drift(routes):
    noise = torch.Generator().manual_seed(2)
    z, y = torch.randn(40, 5, generator=noise), torch.randn(40, 5, generator=noise) + 1
    step = SimpleNamespace(particles=z, targets=y, settings=SimpleNamespace(bandwidths=(0.3, 1.0)))
    distances = torch.cat([torch.cdist(z, y), torch.cdist(z, z)], 1)
    own = torch.arange(40)
    distances[own, own] = distances[own, 40 + own] = math.inf
    unit = distances.amin(1).median()
    expected = drift(z, y, [0.3 * unit, 1.0 * unit])
    assert torch.allclose(routes.field(step, y, z), expected, atol=1e-4)


def test_sinkhorns_weights_have_both_sums(routes):
    weights = routes.balanced(torch.rand(30, 60, generator=torch.Generator().manual_seed(0)), torch.tensor(0.3))
    assert torch.allclose(weights.sum(0), torch.full((60,), 0.5), atol=1e-5)
    assert torch.allclose(weights.sum(1), torch.ones(30), atol=1e-3)


def test_exemplars_keep_mean_and_covariance_and_know_their_likelihood(routes):
    noise = torch.Generator().manual_seed(3)
    means = torch.cat([torch.randn(60, 2, generator=noise) - 4, torch.randn(40, 2, generator=noise) + 4])
    made = routes.Exemplars(means, torch.tensor([0] * 60 + [1] * 40), 0.1 * torch.eye(2).repeat(2, 1, 1))
    expected = torch.cov(made.means.T, correction=0) + 0.1 * torch.eye(2)
    for h in (1.0, 0.5, 0.0):
        z = made.draw(h)(50_000, noise)
        assert torch.allclose(torch.cov(z.T), expected, rtol=0.03, atol=0.05)
    at_one = GaussianMixture(torch.tensor([0.6, 0.4]), made.centres, made.spread + made.noise)
    z = at_one.sample(500, noise)
    assert made.log_likelihood(1.0, z) == pytest.approx(-float(at_one.energy(z).mean()), abs=1e-3)


def drawn_of(means, std, count=4000):
    noise = torch.Generator().manual_seed(9)
    return means[:count] + std[:count] * torch.randn(count, means.shape[1], generator=noise)


def test_a_flow_within_a_component_gains_what_the_gaussian_lacks(routes):
    from component_flow import ComponentFlow

    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    means, std = torch.cat([x, x.square() - 1], 1), torch.tensor([[1e-3, 0.3]]).expand(4000, 2)  # a crescent
    z = drawn_of(means, std)
    base = GaussianMixture(torch.ones(1), z.mean(0)[None], torch.cov(z.T)[None])
    across = (z[:, 1] - z[:, 0].square() + 1) / 0.3
    true = float((-0.5 * (z[:, 0].square() + across.square()) - math.log(2 * math.pi * 0.3)).mean())
    lacking = true + float(base.energy(z).mean())
    flow = ComponentFlow(base, means, (std, torch.eye(2)), z, 400, batch=128)
    assert 0.4 * lacking < flow.nats < lacking + 0.02
    drawn = flow.draw(4000, torch.Generator().manual_seed(1))
    assert float((drawn[:, 1] - drawn[:, 0].square() + 1).abs().median()) < 0.6  # a Gaussian has .9
    y, k = torch.randn(10, 2), torch.zeros(10).long()
    there, log_det = flow.network.to_noise(y, k)
    torch.testing.assert_close(flow.network.from_noise(there, k), y, atol=1e-4, rtol=1e-4)
    rows = [
        torch.autograd.functional.jacobian(lambda x: flow.network.to_noise(x[None], k[:1])[0][0], row) for row in y
    ]
    torch.testing.assert_close(torch.stack(rows).det().abs().log(), log_det, atol=1e-4, rtol=1e-4)


def test_a_field_among_turned_features_is_pulled_back_to_itself(routes):
    noise = torch.Generator().manual_seed(3)
    z, y = torch.randn(300, 4, generator=noise), torch.randn(300, 4, generator=noise) + 1
    turn = torch.linalg.qr(torch.randn(4, 4, generator=noise))[0]
    step = Step(z, y, [], 0.0, SamplerSettings(bandwidths=(0.3, 1.0)))
    plain = routes.field(step, y, z)
    turned = routes.pulled_back(step, lambda latents: latents @ turn)
    torch.testing.assert_close(turned, plain / plain.square().mean().sqrt(), atol=1e-4, rtol=1e-4)


def test_a_spatial_sampler_begins_with_its_base_and_sees_the_whole_plane(routes):
    from spatial_sampler import SpatialSampler

    torch.manual_seed(0)
    net, u = SpatialSampler((2, 4, 6), 8, 1), torch.randn(3, 48)
    assert torch.equal(net(u), u)
    torch.nn.init.normal_(net.head[-2].weight)
    u.requires_grad_()
    (slope,) = torch.autograd.grad(net(u)[0, 0], u)
    assert bool((slope[0] != 0).all())
    assert not slope[1:].any()


def test_a_field_in_one_window_is_the_field_and_in_small_ones_is_of_each(routes):
    from spatial_sampler import in_windows

    from ldcvae.directions.fields import drift as field
    from ldcvae.directions.kernels import nearest_neighbour_distance

    noise = torch.Generator().manual_seed(3)
    z, y = torch.randn(30, 16, generator=noise), torch.randn(30, 16, generator=noise)
    settings = SamplerSettings(direction="drift", bandwidths=(0.3, 1.0), particles=30)

    def step(z, y):
        unit = nearest_neighbour_distance(y)
        return Step(z, y, [width * unit for width in settings.bandwidths], 0.3, settings)

    whole = field(step(z, y))
    one = in_windows(field, (1, 4, 4), 4)(step(z, y))
    assert torch.allclose(one, whole / whole.square().mean().sqrt(), atol=1e-5)
    y[:, :8], z[:, :8] = y[:, :8] + 5, z[:, :8]  # rows 0 and 1 of the plane are far off, in windows of two by two too
    found = in_windows(field, (1, 4, 4), 2)(step(z, y)).unflatten(1, (4, 4))
    assert float(found[:, :2].mean()) > 0.1
