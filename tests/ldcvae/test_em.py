"""EM against scikit-learn's, step for step."""

import pytest
import torch
from sklearn.mixture import GaussianMixture

from ldcvae.densities import em


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
    theirs = GaussianMixture(components, random_state=3, max_iter=steps).fit(z.numpy())
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
