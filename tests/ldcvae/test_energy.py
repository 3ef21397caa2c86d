"""Latent densities: scores against autograd, normalisation, smoothing and leave-one-out."""

import math

import pytest
import torch
from torch import distributions as td

from ldcvae.densities import Gaussian, GaussianMixture, KernelMixture, StandardNormal
from ldcvae.densities import kernel_mixture as energy


def spd(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    a = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return a @ a.mT / shape[-1] + 0.3 * torch.eye(shape[-1], dtype=dtype)


def density(name: str, dim: int) -> energy.LatentDensity:
    generator = torch.Generator().manual_seed(dim)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    match name:
        case "standard":
            return StandardNormal(dim, dtype=torch.float64)
        case "gaussian":
            return Gaussian(randn(dim), spd(dim))
        case "mixture":
            return GaussianMixture(torch.tensor([0.2, 0.5, 0.3]).double(), 2 * randn(3, dim), spd(3, dim))
        case "kernel":
            return KernelMixture(2 * randn(7, dim), randn(7, dim), floor=0.5)
    raise AssertionError(name)


NAMES = ["standard", "gaussian", "mixture", "kernel"]


@pytest.mark.parametrize("dim", [1, 3, 16])
@pytest.mark.parametrize("name", NAMES)
def test_score_is_minus_the_gradient_of_the_energy(name: str, dim: int) -> None:
    p = density(name, dim)
    z = (3 * torch.randn(20, dim, generator=torch.Generator().manual_seed(1))).double().requires_grad_()
    value = p.energy(z)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert value.shape == (20,)
    torch.testing.assert_close(p.score(z), -gradient)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("sigma", [0.0, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one(name: str, sigma: float, dim: int) -> None:
    axis = torch.linspace(-14, 14, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    mass = (-density(name, dim).smoothed(sigma).energy(grid)).exp().sum() * (axis[1] - axis[0]) ** dim
    assert float(mass) == pytest.approx(1.0, abs=1e-6)


def test_agrees_with_torch_distributions() -> None:
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = density("gaussian", 4)
    assert isinstance(g, Gaussian)
    torch.testing.assert_close(g.energy(z), -td.MultivariateNormal(g.mean, g.covariance).log_prob(z))
    m = density("mixture", 4)
    assert isinstance(m, GaussianMixture)
    full = td.MultivariateNormal(m.means, m.covariances)
    reference = td.MixtureSameFamily(td.Categorical(m.weights), full).log_prob(z)
    torch.testing.assert_close(m.energy(z), -reference)
    k = density("kernel", 4)
    assert isinstance(k, KernelMixture)
    diagonal = td.Independent(td.Normal(k.means, k.variances.sqrt()), 1)
    uniform = td.Categorical(torch.ones(len(k.means), dtype=torch.float64))
    torch.testing.assert_close(k.energy(z), -td.MixtureSameFamily(uniform, diagonal).log_prob(z))


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_moments_of_the_density(name: str) -> None:
    # E[score] = 0 and E[-score (z - a)ᵀ] = I hold for exact draws of any smooth density (Stein's identity).
    p, n = density(name, 3), 40_000
    z = p.sample(n, torch.Generator().manual_seed(0))
    score = p.score(z)
    assert z.shape == (n, 3)
    torch.testing.assert_close(score.mean(0), torch.zeros(3).double(), atol=0.04, rtol=0)
    torch.testing.assert_close(-score.T @ (z - z.mean(0)) / n, torch.eye(3).double(), atol=0.06, rtol=0)
    torch.testing.assert_close(z, p.sample(n, torch.Generator().manual_seed(0)), atol=0, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_temperature_scales_what_draws_add_to_their_centre(name: str) -> None:
    p = density(name, 3)
    plain, centres, wide = (p.sample(50, torch.Generator().manual_seed(0), scale) for scale in (1.0, 0.0, 1.5))
    assert torch.allclose(wide - centres, 1.5 * (plain - centres), atol=1e-6)
    assert float((plain - centres).abs().max()) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_smoothed_is_the_law_of_noisy_draws(name: str) -> None:
    p, sigma = density(name, 1), 0.8
    clean = p.sample(100_000, torch.Generator().manual_seed(0))
    z = torch.linspace(-4, 4, 9, dtype=torch.float64).unsqueeze(1)
    # p * N(0, σ²) at z is E[N(z; clean, σ²)].
    expected = torch.exp(-0.5 * (z - clean.T) ** 2 / sigma**2).mean(1) / (sigma * math.sqrt(2 * math.pi))
    smoothed = p.smoothed(sigma)
    torch.testing.assert_close((-smoothed.energy(z)).exp(), expected, atol=3e-3, rtol=0)
    assert smoothed.smallest_variance() == pytest.approx(p.smallest_variance() + sigma**2)


def test_leave_one_out_is_the_mixture_without_that_component(monkeypatch: pytest.MonkeyPatch) -> None:
    p = density("kernel", 3)
    assert isinstance(p, KernelMixture)
    n = len(p.means)
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    index = torch.arange(n)
    index[-1] = -1
    mask = torch.eye(n, dtype=torch.bool)
    mask[-1] = False
    expected_energy, expected_score = [], []
    for i in range(n):
        rest = p
        if i < n - 1:
            keep = torch.arange(n) != i
            rest = KernelMixture(p.means[keep], p.variances[keep].log())
        expected_energy.append(rest.energy(z[i : i + 1]))
        expected_score.append(rest.score(z[i : i + 1]))
    for chunk in (2**22, 2 * n):  # all queries at once, then two at a time
        monkeypatch.setattr(energy, "_CHUNK_ELEMENTS", chunk)
        for exclude in (index, mask):
            torch.testing.assert_close(p.energy(z, exclude=exclude), torch.cat(expected_energy))
            torch.testing.assert_close(p.score(z, exclude=exclude), torch.cat(expected_score))
    everything = torch.ones(1, n, dtype=torch.bool)
    assert p.energy(z[:1], exclude=everything).item() == math.inf
    assert p.energy(z[:0]).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_accurate_far_from_the_origin(name: str) -> None:
    shift = 100.0
    p = density(name, 8)
    if isinstance(p, KernelMixture):
        p = KernelMixture(p.means.float() + shift, p.variances.float().log())
    elif isinstance(p, GaussianMixture):
        p = GaussianMixture(p.weights.float(), p.means.float() + shift, p.covariances.float())
    else:
        assert isinstance(p, Gaussian)
        p = Gaussian(p.mean.float() + shift, p.covariance.float())
    z = p.sample(200, torch.Generator().manual_seed(0))
    # Rebuilt from the float32 parameters, so that only the arithmetic differs.
    if isinstance(p, KernelMixture):
        exact: energy.LatentDensity = KernelMixture(p.means.double(), p.variances.double().log())
    elif isinstance(p, GaussianMixture):
        exact = GaussianMixture(p.weights.double(), p.means.double(), p.covariances.double())
    else:
        exact = Gaussian(p.mean.double(), p.covariance.double())
    torch.testing.assert_close(p.energy(z).double(), exact.energy(z.double()), atol=2e-3, rtol=0)
    torch.testing.assert_close(p.score(z).double(), exact.score(z.double()), atol=5e-3, rtol=1e-3)


def test_floor_bounds_the_bandwidth_from_below() -> None:
    means = torch.zeros(2, 2)
    p = KernelMixture(means, torch.tensor([[-20.0, 0.0], [2.0, -1.0]]), floor=0.5)
    torch.testing.assert_close(p.variances, torch.tensor([[0.25, 1.0], [math.exp(2.0), math.exp(-1.0)]]))
    torch.testing.assert_close(KernelMixture(means, floor=0.5).variances, torch.full((2, 2), 0.25))


def test_fits_recover_what_they_were_drawn_from() -> None:
    true = density("mixture", 2)
    z = true.sample(5000, torch.Generator().manual_seed(0)).float()
    single = Gaussian.fit(z)
    torch.testing.assert_close(single.mean, z.mean(0))
    torch.testing.assert_close(single.covariance, z.T.cov(), atol=1e-4, rtol=1e-4)
    mixture = GaussianMixture.fit(z, components=3)
    assert mixture.means.dtype == torch.float32
    held_out = true.sample(5000, torch.Generator().manual_seed(1))
    gap = mixture.energy(held_out.float()).double().mean() - true.energy(held_out).mean()
    assert -0.02 < float(gap) < 0.02  # nats
    collapsed = Gaussian.fit(torch.cat([z, torch.zeros(len(z), 1)], 1))
    assert bool(collapsed.energy(torch.zeros(1, 3)).isfinite().all())
    assert Gaussian.fit(z[:, :1]).covariance.shape == (1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_to_returns_the_same_density_in_another_dtype(name: str) -> None:
    p = density(name, 3)
    single = p.to("cpu", torch.float32)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(single.energy(z), p.energy(z.double()).float(), atol=1e-4, rtol=1e-4)
    assert type(single) is type(p)
    assert single.score(z).dtype == torch.float32
    assert p.sample(1).dtype == torch.float64  # the original is left as it was


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StandardNormal(0), "dim must be at least 1"),
        (lambda: Gaussian(torch.zeros(2), torch.eye(3)), r"covariance \(d, d\)"),
        (lambda: Gaussian(torch.zeros(2), -torch.eye(2)), "positive definite, its smallest eigenvalue is -1"),
        (lambda: Gaussian.fit(torch.zeros(1, 2)), "at least 2 rows"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(3, 2), torch.eye(2)), r"weights \(K,\)"),
        (lambda: GaussianMixture(-torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]), "weights must be"),
        (lambda: GaussianMixture.fit(torch.zeros(5, 2), components=6), "fit needs components"),
        (lambda: KernelMixture(torch.zeros(0, 2)), "N >= 1"),
        (lambda: KernelMixture(torch.zeros(3, 2)), "floor must be positive"),
        (lambda: KernelMixture(torch.zeros(3, 2), torch.zeros(3, 1)), "shape of means"),
        (lambda: KernelMixture(torch.zeros(3, 2), torch.zeros(3, 2), floor=-1.0), "floor must be"),
        (lambda: StandardNormal(2).smoothed(-1.0), "sigma must be"),
        (lambda: StandardNormal(2).energy(torch.zeros(4, 3)), r"expected latents of shape \(n, 2\)"),
        (lambda: KernelMixture(torch.zeros(3, 2), floor=1.0).score(torch.zeros(2)), "expected latents"),
        (lambda: loo(3, torch.zeros(2, dtype=torch.int64)), r"exclude must be int64 of shape \(1,\)"),
        (lambda: loo(3, torch.tensor([3])), r"exclude must lie in -1 \.\. 2"),
        (lambda: loo(1, torch.tensor([0])), "at least 2 components"),
    ],
)
def test_errors_say_what_is_allowed(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def loo(components: int, exclude: torch.Tensor) -> torch.Tensor:
    return KernelMixture(torch.zeros(components, 2), floor=1.0).score(torch.zeros(1, 2), exclude=exclude)
