"""Latent models on a density with known modes and moments."""

import pytest
import torch

from ldcvae import LDCVAE, Encodings, LDCVAEConfig
from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.metrics.latents import median_bandwidths, mmd2
from ldcvae.rivals.fits import _fit
from ldcvae.rivals.fitting import Budget, Fitting, at_temperature
from ldcvae.rivals.flows import fit_flow_matching, fit_mean_flow
from ldcvae.rivals.generators import Fit, fit_autoregressive_flow, fit_two_stage
from ldcvae.training.settings import SamplerSettings
from ldcvae.variants import GENERATORS

FITS = {
    "maf": fit_autoregressive_flow,
    "flow_matching": fit_flow_matching,
    "mean_flow": fit_mean_flow,
    "two_stage": fit_two_stage,
}


def target() -> GaussianMixture:
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0]])
    covariance = torch.tensor([[[0.2, 0.1], [0.1, 0.2]], [[0.2, -0.1], [-0.1, 0.2]]])
    return GaussianMixture(torch.tensor([0.7, 0.3]), means, covariance)


def fit(seed: int = 0, steps: int = 800) -> Fit:
    generator, density = torch.Generator().manual_seed(seed), target()
    return Fit(
        lambda n: density.sample(n, generator),
        2,
        steps=steps,
        batch=256,
        learning_rate=3e-3,
        width=64,
        depth=2,
        generator=generator,
    )


@pytest.mark.parametrize("name", ["maf", "flow_matching", "two_stage"])  # MeanFlow: below
def test_draws_are_nearer_to_the_target_than_a_gaussian_fit(name: str) -> None:
    density, generator = target(), torch.Generator().manual_seed(1)
    exact = density.sample(2000, generator)
    draws = FITS[name](fit())(2000, generator)
    gaussian = exact.mean(0) + torch.randn(2000, 2, generator=generator) @ torch.linalg.cholesky(exact.T.cov()).T
    bandwidths = median_bandwidths(exact)
    share = {"maf": 0.2, "flow_matching": 0.1, "two_stage": 0.8}[name]
    assert mmd2(draws, exact, bandwidths) < share * mmd2(gaussian, exact, bandwidths)
    assert float((draws[:, 0] < 0).float().mean()) == pytest.approx(0.7, abs=0.1)


TEMPERED = [name for name, record in GENERATORS.items() if record.tempered and name != "sampler"]


@pytest.mark.parametrize("name", TEMPERED)
def test_a_temperature_widens_the_noise_that_a_generator_starts_from(name: str) -> None:
    """Of encodings that are one Gaussian: its standard deviation times the temperature, of learnt ones roughly."""
    if name == "maf":
        pytest.importorskip("zuko")
    noise = torch.Generator().manual_seed(0)
    model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=2, width=16, depth=1))
    encodings = Encodings(3.0 + 2.0 * torch.randn(1000, 2, generator=noise), torch.full((1000, 2), -9.0))
    model.set_whitening(encodings.whitening())
    sampler = SamplerSettings(steps=150, particles=128, width=32, depth=1, learning_rate=5e-3, base="gmm")
    knob = {"gmm_tuned": 1.0}.get(name)
    budget = Budget(sampler, components=1, euler_steps=10)
    draw = GENERATORS[name].fit(Fitting(name, model, encodings, setting=knob, budget=budget))

    def at(temperature: float) -> torch.Tensor:
        return at_temperature(draw, temperature)(4000, torch.Generator().manual_seed(1))

    with torch.no_grad():
        one, wide = at(1.0), at(1.5)
        assert torch.equal(one, draw(4000, torch.Generator().manual_seed(1)))
    ratio, exact = wide.std(0) / one.std(0), GENERATORS[name].kind == "closed"
    # What a network makes of noise that it has not seen in training, nobody says; it is wider in any case.
    assert (
        ratio.tolist() == pytest.approx([1.5, 1.5], rel=1e-4)
        if exact
        else bool(((ratio > 1.1) & (ratio < 1.6)).all())
    )
    if name != "prior":
        assert wide.mean(0).tolist() == pytest.approx([3.0, 3.0], abs=0.3 if exact else 1.0)


@pytest.mark.parametrize("name", FITS)
def test_seeds_make_fits_repeatable(name: str) -> None:
    first, second = (FITS[name](fit(steps=5))(10, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, second)


def test_weights_that_are_not_finite_are_an_error() -> None:
    broken = fit(steps=5)
    broken.draw = lambda n: torch.full((n, 2), float("inf"))
    with pytest.raises(FloatingPointError, match="learning rate"):
        fit_flow_matching(broken)


def test_flow_matching_from_a_mixture_keeps_what_is_right_already() -> None:
    density, generator = target(), torch.Generator().manual_seed(1)
    exact = density.sample(2000, generator)
    from_normal, from_target = (
        fit_flow_matching(fit(steps=20), 10, start)(2000, generator) for start in (None, density.sample)
    )
    bandwidths = median_bandwidths(exact)
    assert mmd2(from_target, exact, bandwidths) < 0.2 * mmd2(from_normal, exact, bandwidths)


def test_mean_flow_learns_the_way_between_two_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    made = fit(steps=600)
    made.draw = lambda n: 2 + 0.5 * torch.randn(n, 2, generator=generator)
    draws = fit_mean_flow(made)(4000, generator)
    assert float((draws.mean(0) - 2).abs().max()) < 0.3
    assert float((draws.std(0) - 0.5).abs().max()) < 0.15


def test_rivals_take_noise_and_averaging_from_the_samplers_settings():
    model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=2))
    encodings = Encodings(torch.zeros(50, 2), torch.zeros(50, 2))
    budget = Budget(sampler=SamplerSettings(ema=0.5, posterior_noise=0.25, particles=8, steps=3))
    fit = _fit(Fitting("flow_matching", model, encodings, budget=budget, seed=0))
    assert fit.ema == 0.5
    drawn = model.whitening.unwhiten(fit.draw(4000))
    assert float(drawn.std()) == pytest.approx(0.25, rel=0.05)
