"""Mixtures of factor analysers and of diagonal Gaussians: against dense ones, planted truths and scikit-learn."""

from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor
from torch import distributions as td

from ldcvae import Encodings
from ldcvae.densities import GaussianMixture, LowRankMixture, factor_em, fit_gaussians, low_rank, noise
from ldcvae.densities.covariances import choose_covariances, draws_to_fit
from ldcvae.densities.em import fit_mixture
from ldcvae.densities.factor_em import fit_factor_mixture


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(components: int, dim: int, rank: int, apart: float = 2.0) -> LowRankMixture:
    g = generator(dim)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    variances = 0.1 + torch.rand(components, dim, generator=g, dtype=torch.float64)
    weights = torch.arange(1.0, components + 1, dtype=torch.float64)
    return LowRankMixture(weights, apart * randn(components, dim), randn(components, dim, rank), variances)


def dense(p: LowRankMixture) -> td.MixtureSameFamily:
    return td.MixtureSameFamily(td.Categorical(p.weights), td.MultivariateNormal(p.means, p.covariances()))


SHAPES = [(1, 1, 0), (1, 3, 1), (3, 5, 2), (2, 16, 4), (4, 6, 0)]


@pytest.mark.parametrize(("components", "dim", "rank"), SHAPES)
def test_energy_and_score_are_those_of_dense_gaussians_and_of_autograd(
    components: int, dim: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = planted(components, dim, rank)
    assert p.kind == ("low_rank" if rank else "diagonal")
    z = (3 * torch.randn(20, dim, generator=generator(1), dtype=torch.float64)).requires_grad_()
    full = GaussianMixture(p.weights, p.means, p.covariances())
    assert full.kind == "full"
    for chunk in (2**22, 7 * components * dim):  # all latents at once, then seven at a time
        monkeypatch.setattr(low_rank, "_CHUNK_NUMBERS", chunk)
        energy = p.energy(z)
        torch.testing.assert_close(energy, -dense(p).log_prob(z))
        torch.testing.assert_close(p.score(z), -torch.autograd.grad(energy.sum(), z)[0])
        torch.testing.assert_close(p.score(z), full.score(z))
    assert p.energy(z[:0]).shape == (0,)
    smoothed = p.smoothed(0.7)
    torch.testing.assert_close(smoothed.energy(z), full.smoothed(0.7).energy(z))
    assert smoothed.smallest_variance() == pytest.approx(p.smallest_variance() + 0.49)
    assert p.smallest_variance() <= full.smallest_variance() + 1e-9


@pytest.mark.parametrize(("components", "dim", "rank"), SHAPES)
def test_draws_have_the_moments_of_the_density(components: int, dim: int, rank: int) -> None:
    p, n = planted(components, dim, rank), 40_000
    z = p.sample(n, generator())
    assert torch.equal(z, p.sample(n, generator()))
    # Stein's identity, as in test_energy: E[score] = 0 and E[-score (z - a)ᵀ] = I.
    score = p.score(z)
    torch.testing.assert_close(score.mean(0), torch.zeros(dim).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(-score.T @ (z - z.mean(0)) / n, torch.eye(dim).double(), atol=0.15, rtol=0)
    torch.testing.assert_close(z.mean(0), p.mean, atol=0.1, rtol=0)


def test_float32_is_accurate_far_from_the_origin_and_with_long_factors() -> None:
    p = planted(3, 64, 8)
    p = LowRankMixture(p.weights, p.means + 100, 10 * p.factors, p.variances).to(dtype=torch.float32)
    z = p.sample(200, generator())
    exact = LowRankMixture(p.weights.double(), p.means.double(), p.factors.double(), p.variances.double())
    torch.testing.assert_close(p.energy(z).double(), exact.energy(z.double()), atol=5e-2, rtol=1e-4)
    torch.testing.assert_close(p.score(z).double(), exact.score(z.double()), atol=5e-2, rtol=1e-3)


def test_scaled_noise_is_the_same_by_all_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    for k, d, r in [(5, 3, 2), (3, 5, 2), (2, 4, 4)]:
        draws, scales = torch.randn(50, r, generator=generator()), torch.randn(k, d, r, generator=generator(1))
        component = torch.randint(k - 1, (50,), generator=generator())  # the last one has no row
        expected = torch.stack([scales[c] @ x for c, x in zip(component, draws, strict=True)])
        for most in (2**24, 0):
            monkeypatch.setattr(noise, "_NOISE_NUMBERS", most)
            torch.testing.assert_close(noise.scaled_noise(draws, scales, component), expected)
            assert noise.scaled_noise(draws, scales[:, :, :0], component).abs().max() == 0


class Fitted(NamedTuple):
    truth: LowRankMixture
    fit: LowRankMixture
    order: Tensor  # of the fit's components, by the truth's
    gap: float  # in nats a draw, on draws that were not fitted to


def fitted(components: int, dim: int, rank: int, n: int, seed: int = 0) -> Fitted:
    truth = planted(components, dim, rank, apart=1.0)
    fit = LowRankMixture.fit(truth.sample(n, generator(1)), components, seed, rank=rank)
    new = truth.sample(4000, generator(2))
    order = torch.cdist(truth.means, fit.means).argmin(1)
    return Fitted(truth, fit, order, float(fit.energy(new).mean() - truth.energy(new).mean()))


@pytest.mark.parametrize(
    ("components", "dim", "rank"), [(1, 12, 3), (2, 12, 3), (1, 60, 5), (2, 60, 5), (1, 9, 0), (2, 40, 0)]
)
def test_em_recovers_what_was_planted(components: int, dim: int, rank: int) -> None:
    truth, fit, order, gap = fitted(components, dim, rank, 20_000)
    assert sorted(order.tolist()) == list(range(components))
    torch.testing.assert_close(fit.weights[order], truth.weights, atol=0.01, rtol=0)
    torch.testing.assert_close(fit.means[order], truth.means, atol=0.15, rtol=0)
    torch.testing.assert_close(fit.variances[order], truth.variances, atol=0.1, rtol=0)
    error = (fit.covariances()[order] - truth.covariances()).flatten(1).norm(dim=1)
    assert float((error / truth.covariances().flatten(1).norm(dim=1)).max()) < 0.1
    # Wilks: a fit of p parameters to n draws lies p / 2n nats below the truth on new ones.
    parameters = components * (dim * (2 + rank) + 1)
    assert -0.01 < gap < 0.02 + 2 * parameters / 40_000


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_the_likelihood_never_falls(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    advance = factor_em._Step.advance

    def spy(self: factor_em._Step, labels: Tensor | None = None) -> float:
        value = advance(self, labels)
        seen.extend([value] if labels is None else [])
        return value

    monkeypatch.setattr(factor_em._Step, "advance", spy)
    monkeypatch.setattr(factor_em, "BLOCK_BYTES", 50_000)  # many blocks
    z = planted(4, 10, 5).sample(2000, generator())
    fit_factor_mixture(z, 6, rank, tolerance=1e-6)
    rises = torch.tensor(seen).diff()
    assert len(rises) > 5
    assert float(rises.min()) > -1e-5
    assert float(rises.sum()) > 0.01


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("steps", [1, 5, 100])
def test_diagonal_covariances_are_scikit_learns_after_the_same_steps(steps: int) -> None:
    z = planted(4, 5, 0).sample(1000, generator()) + 50
    ridge = 1e-6 * float((z - z.mean(0)).square().mean())  # of scikit-learn's in the data's units, ours is a share
    theirs = SklearnMixture(4, covariance_type="diag", random_state=3, max_iter=steps, reg_covar=ridge).fit(z.numpy())
    weights, means, factors, variances = fit_factor_mixture(z, 4, 0, seed=3, max_steps=steps)
    assert factors.shape == (4, 5, 0)
    torch.testing.assert_close(weights, torch.from_numpy(theirs.weights_), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(means, torch.from_numpy(theirs.means_), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(variances, torch.from_numpy(theirs.covariances_), rtol=1e-6, atol=1e-7)


def test_low_rank_is_nearly_as_likely_as_full_where_both_can_be() -> None:
    pixels = torch.from_numpy(load_digits().images.reshape(-1, 64) / 16).float()
    pixels = pixels[torch.randperm(len(pixels), generator=generator())]
    known, new = (Encodings(part, torch.full_like(part, -3.0)) for part in (pixels[:1294], pixels[1294:]))
    whitening = known.whitening()
    train, held_out = (whitening.whiten(part.draw(n, generator(n))) for part, n in ((known, 6000), (new, 2000)))
    full, low, diagonal, one = (
        float(p.energy(held_out).mean())
        for p in (
            GaussianMixture(*fit_mixture(train, 10, max_steps=8)),
            LowRankMixture.fit(train, 10, rank=16),
            LowRankMixture.fit(train, 10, rank=0),
            GaussianMixture(torch.ones(1), train.mean(0)[None], train.T.cov()[None]),
        )
    )
    # In 64 dimensions; with 10,000 draws and EM to the end 88.3, 88.8 and 90.2.
    assert max(low, full + 0.5) < diagonal < one, (full, low, diagonal, one)
    assert low < full + 0.5, (full, low, diagonal, one)


def test_coinciding_latents_and_too_few_for_the_rank() -> None:
    z = torch.cat([torch.ones(50, 6), 3 + torch.randn(5, 6, generator=generator())])
    for scale in (1e-3, 1.0, 1e4):
        fit = LowRankMixture.fit(scale * z, 2, rank=5)
        assert bool(fit.energy(scale * z).isfinite().all())
        assert sorted(fit.weights.tolist()) == pytest.approx([5 / 55, 50 / 55], abs=1e-3)
    single = z.float()
    first, again, other = (fit_factor_mixture(single, 3, 2, seed=seed) for seed in (0, 0, 1))
    assert all(part.dtype == torch.float32 for part in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


def test_the_kind_follows_from_dimension_and_number() -> None:
    assert {choose_covariances(d, k).kind for d in (1, 8, 16, 64) for k in (1, 10, 100, 300)} == {
        "full"
    }  # as published
    assert [choose_covariances(d, k).kind for d, k in ((128, 300), (256, 128), (512, 30))] == ["full"] * 3
    assert choose_covariances(1024, 10) == ("low_rank", 32)
    assert choose_covariances(256, 200) == ("low_rank", 20)  # as many as its numbers leave
    assert choose_covariances(4096, 10) == ("low_rank", 25)
    assert choose_covariances(4096, 100) == choose_covariances(1, 10**7) == ("diagonal", 0)
    assert [draws_to_fit(d, k) for d, k in ((600, 10), (1024, 100), (4096, 10), (4096, 1000))] == [
        10_000,
        32_768,
        8192,
        20_000,
    ]
    z = torch.randn(300, 70, generator=generator())
    assert [fit_gaussians(z[:, :d], 2).kind for d in (3, 70)] == ["full", "full"]
    assert fit_gaussians(z, 2, kind="diagonal").kind == "diagonal"
    assert fit_gaussians(z, 2, kind="full").kind == "full"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LowRankMixture(torch.ones(2), torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3)),
            r"factors \(K",
        ),
        (
            lambda: LowRankMixture(-torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2, 1), torch.ones(1, 2)),
            "weights must",
        ),
        (
            lambda: LowRankMixture(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2, 1), torch.zeros(1, 2)),
            "positive",
        ),
        (lambda: fit_factor_mixture(torch.zeros(5, 2), 6, 1), "fit needs components"),
        (lambda: fit_factor_mixture(torch.zeros(5, 2), 2, 2), r"rank must lie in 0 .. 1 for d = 2, got 2"),
    ],
)
def test_wrong_arguments_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
