"""Annealed Langevin dynamics against densities whose moments and modes are known."""

import math

import pytest
import torch

from ldcvae.densities import Gaussian, GaussianMixture, KernelMixture, StandardNormal
from ldcvae.densities.mcmc import hmc, langevin, noise_levels
from ldcvae.metrics.latents import median_bandwidths, mmd2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ring(modes: int = 8, std: float = 0.1) -> GaussianMixture:
    angles = torch.arange(modes) * (2 * math.pi / modes)
    means = math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(torch.ones(modes), means, std**2 * torch.eye(2).expand(modes, 2, 2))


def test_recovers_the_moments_of_a_correlated_gaussian() -> None:
    mean, covariance = torch.tensor([5.0, -3.0]), torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    z = langevin(Gaussian(mean, covariance), 20_000, steps_per_level=20, generator=seeded())
    torch.testing.assert_close(z.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), covariance, atol=0.05, rtol=0)


@pytest.mark.parametrize("step_size", [0.5, 1.5, 3.0])
def test_no_step_size_bias_on_a_gaussian(step_size: float) -> None:
    z = langevin(StandardNormal(2), 20_000, step_size=step_size, generator=seeded())
    torch.testing.assert_close(z.var(0), torch.ones(2), atol=0.05, rtol=0)


def test_visits_every_mode_of_a_ring_evenly() -> None:
    p = ring()
    z = langevin(p, 8000, generator=seeded())
    nearest = torch.cdist(z, p.means).argmin(1)
    share = nearest.bincount(minlength=8) / len(z)
    assert float(share.min()) > 0.09  # an eighth each
    assert float(share.max()) < 0.16
    spread = (z - p.means[nearest]).pow(2).mean()
    assert float(spread) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("dim", [2, 8])
def test_draws_of_a_sharp_kernel_mixture_pass_for_exact_ones(dim: int) -> None:
    # Eight clusters of encodings with sharp posteriors, whitened as the sampler's latents are.
    generator = seeded(1)
    centres = torch.randn(8, dim, generator=generator)
    encodings = centres.repeat(30, 1) + 0.3 * torch.randn(240, dim, generator=generator)
    encodings = (encodings - encodings.mean(0)) / encodings.std(0)
    p = KernelMixture(encodings, -5.0 + 0.5 * torch.randn(240, dim, generator=generator))
    exact, z = p.sample(1500, seeded(2)), langevin(p, 1500, generator=seeded())
    bandwidths = median_bandwidths(exact, (0.1, 0.3, 1.0))
    assert mmd2(z, exact, bandwidths) < 1e-3
    assert mmd2(torch.randn(1500, dim, generator=seeded()), exact, bandwidths) > 5e-3
    gap = p.energy(z).mean() - p.energy(exact).mean()
    assert abs(float(gap)) < 0.3  # nats


def test_is_repeatable_with_a_seeded_generator() -> None:
    first, again, other = (langevin(ring(), 50, generator=seeded(s)) for s in (0, 0, 1))
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert not torch.equal(first, other)


def test_few_chains_are_thinned_into_many_draws() -> None:
    z = langevin(StandardNormal(2), 10_001, chains=500, thin=5, generator=seeded())
    assert z.shape == (10_001, 2)
    torch.testing.assert_close(z.T.cov(), torch.eye(2), atol=0.06, rtol=0)
    # Rows of one chain are `chains` apart, and nearly independent after five steps.
    assert abs(float((z[:500] * z[500:1000]).mean())) < 0.1


def test_starts_where_init_says() -> None:
    init = torch.full((3, 2), 50.0)
    z = langevin(StandardNormal(2), 3, levels=0, burn_in=1, step_size=1e-6, init=init, generator=seeded())
    torch.testing.assert_close(z, init, atol=0.01, rtol=0)
    assert langevin(StandardNormal(2), 7, init=init).shape == (7, 2)
    double = langevin(StandardNormal(2, dtype=torch.float64), 3, init=init)
    assert double.dtype == torch.float64


def test_noise_levels_fall_geometrically() -> None:
    assert noise_levels(2.0, 0.25, 4) == pytest.approx([2.0, 1.0, 0.5, 0.25])
    assert noise_levels(2.0, 0.25, 1) == [2.0]
    assert noise_levels(2.0, 0.25, 0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": 4, "levels": -1}, "levels must be at least 0"),
        ({"n": 4, "steps_per_level": 0}, "steps_per_level must be at least 1"),
        ({"n": 4, "burn_in": -1}, "burn_in must be at least 0"),
        ({"n": 4, "thin": 0}, "thin must be at least 1"),
        ({"n": 4, "chains": 5}, r"chains must lie in 1 \.\. n = 4, got 5"),
        ({"n": 4, "step_size": 4.0}, "step_size must lie between 0 and 4"),
        ({"n": 4, "sigma_min": 2.0}, "sigma_min <= sigma_max"),
        ({"n": 4, "sigma_max": 0.0}, "sigma_min <= sigma_max"),
        ({"n": 4, "chains": 2, "init": torch.zeros(2, 3)}, r"init must have shape \(2, 2\)"),
    ],
)
def test_errors_say_what_is_allowed(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        langevin(StandardNormal(2), **arguments)


def test_hmc_recovers_the_moments_of_a_correlated_gaussian() -> None:
    mean, covariance = torch.tensor([5.0, -3.0]), torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    z = hmc(Gaussian(mean, covariance), 20_000, trajectories=10, generator=seeded())
    torch.testing.assert_close(z.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), covariance, atol=0.05, rtol=0)


@pytest.mark.parametrize("step_size", [0.16, 0.8, 1.5])
def test_hmc_has_no_step_size_bias(step_size: float) -> None:
    # Metropolis' rule makes up for the leapfrog's error, up to the edge of stability.
    z = hmc(StandardNormal(2), 20_000, step_size=step_size, trajectories=20, generator=seeded())
    torch.testing.assert_close(z.var(0), torch.ones(2), atol=0.05, rtol=0)


def test_hmc_visits_every_mode_of_a_ring() -> None:
    p = ring()
    z = hmc(p, 8000, generator=seeded())
    nearest = torch.cdist(z, p.means).argmin(1)
    assert float((nearest.bincount(minlength=8) / len(z)).min()) > 0.09
    assert float((z - p.means[nearest]).pow(2).mean()) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    "arguments",
    [{"n": 0}, {"levels": -1}, {"leapfrog_steps": 0}, {"trajectories": -1}, {"step_size": 1.7}, {"sigma_min": 2.0}],
)
def test_hmc_names_an_argument_out_of_range(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        hmc(StandardNormal(2), **({"n": 10} | arguments))
