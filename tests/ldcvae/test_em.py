"""EM against scikit-learn's, step for step, on posteriors, and against its own form before blocks were bounded."""

import math

import pytest
import torch
from sklearn import mixture as sklearn_mixture

from ldcvae.densities import aggregate, em
from ldcvae.densities.aggregate import fit_aggregate
from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.densities.truncated_em import Candidates, Parameters, truncated_step
from ldcvae.encodings import Encodings, Posterior


def clusters(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(6, d, generator=generator, dtype=torch.float64)
    spread = torch.randn(6, d, d, generator=generator, dtype=torch.float64)
    label = torch.randint(6, (n,), generator=generator)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return centres[label] + torch.einsum("nij,nj->ni", spread[label], noise)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("d", "components"), [(1, 3), (3, 6), (8, 12)])
@pytest.mark.parametrize("steps", [1, 5, 100])
def test_the_same_mixture_as_scikit_learn_after_the_same_steps(
    d: int, components: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(em, "ROWS", 300)  # several blocks, the last one short
    z = clusters(1000, d) + 50.0
    ridge = 1e-6 * float((z - z.mean(0)).square().mean())  # ours is a share of the mean variance
    theirs = sklearn_mixture.GaussianMixture(components, random_state=3, max_iter=steps, reg_covar=ridge).fit(
        z.numpy()
    )
    weights, means, covariances = em.fit_mixture(z, components, seed=3, max_steps=steps)
    torch.testing.assert_close(weights, torch.from_numpy(theirs.weights_), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(means, torch.from_numpy(theirs.means_), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(covariances, torch.from_numpy(theirs.covariances_), rtol=1e-6, atol=1e-7)


def test_seeds_choose_the_start_and_dtype_is_kept() -> None:
    z = clusters(400, 2).float()
    first, again, other = (em.fit_mixture(z, 8, seed=seed) for seed in (0, 0, 1))
    assert all(part.dtype == torch.float32 for part in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_coinciding_latents_leave_covariances_positive_definite(scale: float) -> None:
    z = scale * torch.cat([torch.ones(50, 3), clusters(200, 3).float()])
    weights, means, covariances = em.fit_mixture(z.double(), 5)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert bool(means.isfinite().all())
    assert float(torch.linalg.eigvalsh(covariances).min()) > 0


def test_a_component_far_from_all_others_takes_no_other_share() -> None:
    z = torch.cat([clusters(300, 2), torch.full((100, 2), 1e4, dtype=torch.float64)])
    weights, means, _ = em.fit_mixture(z, 4)
    far = int(means[:, 0].argmax())
    assert float(weights[far]) == pytest.approx(0.25)
    torch.testing.assert_close(means[far], torch.full((2,), 1e4, dtype=torch.float64))


def posteriors(n: int, d: int, seed: int = 0) -> Encodings:
    """Curved means, some channels of which the posteriors hardly know."""
    generator = torch.Generator().manual_seed(seed)
    mean = clusters(n, d, seed).float() / 4 + 3.0
    spread = torch.linspace(0.05, 1.5, d) * (0.5 + torch.rand(n, d, generator=generator))
    return Encodings(mean, 2.0 * spread.log())


def test_a_step_on_posteriors_is_that_of_the_dense_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(em, "ROWS", 70)
    given = posteriors(200, 3)
    z, v = given.mean.double(), given.log_variance.double().exp()
    labels = em.start(z, 4, 0)
    shares = torch.nn.functional.one_hot(labels, 4).double()

    def maximised(shares: torch.Tensor) -> tuple[torch.Tensor, ...]:
        counts = shares.sum(0)
        means = (shares.T @ z) / counts[:, None]
        offsets = z[:, None] - means
        outer = torch.einsum("nk,nki,nkj->kij", shares, offsets, offsets) + torch.diag_embed(shares.T @ v)
        return counts / counts.sum(), means, outer / counts[:, None, None] + 1e-6 * torch.eye(3)

    weights, means, covariances = maximised(shares)
    precisions = torch.linalg.inv(covariances)
    offsets = z[:, None] - means
    expected = torch.einsum("nki,kij,nkj->nk", offsets, precisions, offsets)
    expected += torch.einsum("kii,ni->nk", precisions, v)  # the trace term: E (z - m)ᵀ P (z - m) over the posterior
    joint = weights.log() - 0.5 * torch.logdet(covariances) - 0.5 * expected
    wanted = maximised(joint.softmax(1))
    found = em.fit_mixture(z, 4, variances=v, max_steps=1)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_posteriors_are_worth_any_number_of_draws() -> None:
    generator = torch.Generator().manual_seed(3)
    train, held_out = posteriors(600, 8), posteriors(3000, 8, seed=0)
    fresh = held_out.draw(6000, generator)
    scores = {}
    for name, draws in (("one", 1), ("hundred", 100)):
        z = Posterior(train.mean, train.log_variance).draw(torch.randn(600, draws, 8, generator=generator))
        scores[name] = float(GaussianMixture.fit(z.flatten(0, 1), 6).energy(fresh).mean())
    fitted = GaussianMixture.fit(train.mean, 6, variances=train.log_variance.exp())
    scores["moments"] = float(fitted.energy(fresh).mean())
    assert scores["one"] - scores["hundred"] > 0.2
    assert abs(scores["moments"] - scores["hundred"]) < 0.1 * (scores["one"] - scores["hundred"])


@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize("noise", [1.0, 0.5])
def test_an_aggregates_mixture_has_its_moments_in_whitened_coordinates(components: int, noise: float) -> None:
    given = posteriors(500, 6)
    fitted = fit_aggregate(
        given, given.whitening(), components, torch.Generator().manual_seed(0), noise=noise, kind="full"
    )
    mean = fitted.weights @ fitted.means
    second = torch.einsum("k,kij->ij", fitted.weights, fitted.covariances)
    covariance = second + torch.einsum("k,ki,kj->ij", fitted.weights, fitted.means - mean, fitted.means - mean)
    shrunk = Encodings(given.mean, given.log_variance + 2.0 * math.log(noise)).exact_covariance()
    matrix = given.whitening().matrix.double()
    torch.testing.assert_close(mean, torch.zeros(6).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(covariance, matrix.T @ shrunk @ matrix, atol=3e-3, rtol=0)  # over n, and over n - 1


def test_an_aggregates_other_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    given, generator = posteriors(40, 5), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="a mixture of 1,000,000 components needs as many images, got 40"):
        fit_aggregate(given, given.whitening(), 10**6, generator)
    assert fit_aggregate(given, given.whitening(), 2, generator, kind="low_rank", rank=2).kind == "low_rank"
    seen = []
    fit = em.fit_mixture
    monkeypatch.setattr(aggregate, "fit_mixture", lambda z, *a, **k: seen.append(len(z)) or fit(z, *a, **k))
    monkeypatch.setattr(aggregate, "_ROWS", 10)
    many = posteriors(1500, 5)
    fit_aggregate(many, many.whitening(), 2, generator)
    assert seen == [1000]  # 500 a component


def test_variances_are_of_the_rows() -> None:
    with pytest.raises(ValueError, match=r"variances must be \(10, 2\) as the rows are, got \(10,\)"):
        em.fit_mixture(torch.randn(10, 2), 2, variances=torch.ones(10))


def fit_in_fixed_blocks(z: torch.Tensor, components: int, seed: int) -> tuple[torch.Tensor, ...]:
    """`fit_mixture` as in 0.2.0, but for the ridge: 8,192 rows at a time, all products of coordinates gathered."""

    def features_of(rows: torch.Tensor) -> torch.Tensor:
        z = rows.T.contiguous()
        i, j = torch.triu_indices(len(z), len(z), device=z.device)
        return torch.cat([torch.ones_like(z[:1]), z, z[i] * z[j]])

    data = z.detach().to(torch.float64)
    labels = em.start(data, components, seed)
    centre = data.mean(0)
    data = data - centre
    ridge = 1e-6 * float(data.square().mean())
    d, blocks = data.shape[1], data.split(8192)
    totals = data.new_zeros(1 + d + d * (d + 1) // 2, components)
    for rows, part in zip(blocks, labels.split(8192), strict=True):
        totals += features_of(rows) @ torch.nn.functional.one_hot(part, components).to(rows)
    last = -math.inf
    weights, means, covariances = em._parameters(totals, d, ridge)
    for _ in range(100):
        coefficients = em._log_joint_coefficients(weights, means, covariances)
        totals, likelihood = torch.zeros_like(totals), data.new_zeros(())
        for rows in blocks:
            features = features_of(rows)
            log_joint = features.T @ coefficients
            peak = log_joint.amax(1, keepdim=True)
            shares = log_joint.sub_(peak).clamp_(min=-100.0).exp_()
            sums = shares.sum(1, keepdim=True)
            totals += features @ shares.div_(sums)
            likelihood += (peak + sums.log()).sum()
        weights, means, covariances = em._parameters(totals, d, ridge)
        mean = float(likelihood) / len(data)
        gain, last = mean - last, mean
        if abs(gain) < 1e-3:
            break
    return weights.to(z), (means + centre).to(z), covariances.to(z)


@pytest.mark.parametrize(("d", "components", "rows"), [(8, 10, 10_000), (16, 30, 9000), (1, 2, 50)])
def test_blocks_that_fit_give_what_they_gave_to_the_bit(d: int, components: int, rows: int) -> None:
    z = clusters(rows, d).float()
    now, before = em.fit_mixture(z, components, seed=1), fit_in_fixed_blocks(z, components, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))


def test_wide_features_come_in_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    z = clusters(500, 6)
    whole, seen, features = em.fit_mixture(z, 3), [], em._features
    monkeypatch.setattr(em, "_features", lambda rows: seen.append(features(rows).nbytes) or features(rows))
    monkeypatch.setattr(em, "BLOCK_BYTES", 10_000)
    torch.testing.assert_close(em.fit_mixture(z, 3), whole)
    assert len(seen) > 10
    assert max(seen) <= 10_000
    assert 8192 * 8 * (1 + 64 + 64 * 65 // 2) <= 144 * 2**20  # what was published keeps its blocks


def parameters_of(z: torch.Tensor, components: int) -> Parameters:
    labels = em.start(z, components, 0)
    shares = torch.nn.functional.one_hot(labels, components).double()
    counts = shares.sum(0)
    means = shares.T @ z / counts[:, None]
    spread = torch.stack([(z[labels == k] - means[k]).T.cov(correction=0) for k in range(components)])
    return Parameters(counts / counts.sum(), means, spread + 0.1 * torch.eye(z.shape[1]))


@pytest.mark.parametrize("posteriors", [False, True])
def test_a_truncated_step_with_all_components_is_a_plain_one(posteriors: bool) -> None:
    z = clusters(400, 3).double()
    variances = 0.1 + torch.rand(400, 3).double() if posteriors else None
    old = parameters_of(z, 4)
    rows = [z] if variances is None else [z, variances]
    log_joint = em._features(*rows).T @ em._log_joint_coefficients(*old)
    plain = em._parameters(em._features(*rows) @ log_joint.softmax(1), 3, 1e-3)
    everyone = Candidates.of(torch.arange(4).repeat(400, 1), 4)
    new, bound = truncated_step(z, variances, old, everyone, 1e-3)
    for found, wanted in zip(new, plain, strict=True):
        torch.testing.assert_close(found, wanted)
    assert bound == pytest.approx(float(log_joint.logsumexp(1).mean()))


def test_truncated_steps_never_lower_their_bound_which_is_one() -> None:
    z = clusters(600, 3).double()
    now, bounds = parameters_of(z, 8), []
    candidates = Candidates.of(em._likeliest([(z,)], em._log_joint_coefficients(*now))[:, :2], 8)
    for _ in range(6):
        likelihood = (em._features(z).T @ em._log_joint_coefficients(*now)).logsumexp(1).mean()
        now, bound = truncated_step(z, None, now, candidates, 0.0)
        assert bound <= float(likelihood) + 1e-9
        bounds.append(bound)
    assert bounds == sorted(bounds)


def test_a_component_that_nobody_chose_stays_without_weight() -> None:
    z = clusters(100, 2).double()
    old = parameters_of(z, 3)
    new, _ = truncated_step(z, None, old, Candidates.of(torch.zeros(100, 1).long(), 3), 0.0)
    assert new.weights.tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert torch.equal(new.means[1:], old.means[1:])


def test_many_components_in_many_dimensions_are_fitted_as_well_in_truncated_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    centres, scales = 2 * torch.randn(60, 48, generator=generator), 0.3 + torch.rand(60, 48, generator=generator)
    which = torch.randint(60, (12_000,), generator=generator)
    z = centres[which] + scales[which] * torch.randn(12_000, 48, generator=generator)
    held_out, likelihoods = z[9000:], []
    for pays in (True, False):
        monkeypatch.setattr(em.truncated_em, "pays", lambda d, k, pays=pays: pays)
        mixture = GaussianMixture(*em.fit_mixture(z[:9000], 60))
        likelihoods.append(-float(mixture.energy(held_out).mean()))
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=0.5)
    exact = GaussianMixture(torch.full((60,), 1 / 60), centres, torch.diag_embed(scales**2))
    assert likelihoods[0] > -float(exact.energy(held_out).mean()) - 15
