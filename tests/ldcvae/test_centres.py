"""Centres within a mixture's components: found, drawn from, kept, refused where they cannot be."""

import pytest
import torch

from ldcvae import LDCVAE, AutoencoderSettings, Encodings, LDCVAEConfig, SamplerSettings, fit
from ldcvae.densities.centres import LEAST_ROWS, split_components
from ldcvae.densities.covariances import base_fields
from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.training.base import fit_base
from pipeline.config.errors import ConfigError
from pipeline.config.load import load_config

CLUMPS = torch.tensor([[-5.0, -1.0], [-5.0, 1.0], [5.0, -1.0], [5.0, 1.0]])  # two components of two clumps each
STD = 0.2


def clumped(rows=4000):
    noise = torch.Generator().manual_seed(0)
    return CLUMPS[torch.randint(4, (rows,), generator=noise)], torch.full((rows, 2), 2 * torch.log(torch.tensor(STD)))


def pair():
    spread = torch.diag(torch.tensor([STD**2, 1 + STD**2]))
    return GaussianMixture(torch.ones(2), torch.tensor([[-5.0, 0.0], [5.0, 0.0]]), spread.repeat(2, 1, 1))


def density(found):
    """The mixture that centres amount to."""
    kept, of_each = found.weights > 0, len(found.weights) // len(found.covariances)
    covariances = found.covariances.repeat_interleave(of_each, 0)
    return GaussianMixture(found.weights[kept], found.means[kept], covariances[kept])


def test_clumps_within_components_are_found():
    means, log_variance = clumped()
    found = split_components(pair(), means, log_variance.exp(), torch.eye(2), 2)
    order = found.means[:, 0].mul(10).add(found.means[:, 1]).argsort()
    torch.testing.assert_close(found.means[order], CLUMPS, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(found.weights, torch.full((4,), 0.25), atol=0.02, rtol=0.0)
    torch.testing.assert_close(found.covariances, (STD**2 * torch.eye(2)).repeat(2, 1, 1), atol=1e-4, rtol=0.0)
    true = GaussianMixture(torch.ones(4), CLUMPS, (STD**2 * torch.eye(2)).repeat(4, 1, 1))
    z = true.sample(2000, torch.Generator().manual_seed(1))
    assert float(density(found).energy(z).mean()) == pytest.approx(float(true.energy(z).mean()), abs=0.01)


def test_posteriors_are_turned_as_the_coordinates_are():
    means, log_variance = clumped()
    log_variance = log_variance + torch.tensor([0.0, 1.0])
    matrix = torch.tensor([[0.8, 0.3], [0.3, 0.5]])
    wide = pair().covariances + torch.diag(torch.tensor([0.0, STD**2 * 1.8]))
    turned = GaussianMixture(torch.ones(2), pair().means @ matrix, matrix.T @ wide @ matrix)
    found = split_components(turned, means @ matrix, log_variance.exp(), matrix, 2)
    expected = matrix.T @ torch.diag(log_variance[0].exp()) @ matrix
    torch.testing.assert_close(found.covariances[0], expected, atol=1e-4, rtol=1e-3)


def test_a_wide_posterior_is_not_a_narrow_components():
    """Of two components at 0, by E log N: a mean within the narrow one says nothing if the posterior is wide."""
    noise = torch.Generator().manual_seed(0)
    means = torch.cat([0.5 * torch.randn(200, 1, generator=noise), 0.1 * torch.randn(200, 1, generator=noise)])
    variances = torch.cat([torch.full((200, 1), 0.75), torch.full((200, 1), 0.04)])
    both = GaussianMixture(torch.ones(2), torch.zeros(2, 1), torch.tensor([1.0, 0.05])[:, None, None])
    found = split_components(both, means, variances, torch.eye(1), 1)
    assert found.weights.tolist() == [0.5, 0.5]
    torch.testing.assert_close(found.covariances.flatten(), torch.tensor([1.0, 0.05]), rtol=0.1, atol=0.0)
    # The same in coordinates twice as wide.
    twice = GaussianMixture(both.weights, both.means, 4 * both.covariances)
    wider = split_components(twice, 2 * means, variances, 2 * torch.eye(1), 1)
    torch.testing.assert_close(wider.covariances, 4 * found.covariances)


def test_one_centre_keeps_mean_and_covariance_of_what_is_its_own():
    means, log_variance = clumped()
    found = split_components(pair(), means, log_variance.exp(), torch.eye(2), 1)
    torch.testing.assert_close(density(found).mean, means.mean(0), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(found.covariances[0], pair().covariances[0], atol=1e-2, rtol=0.0)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9])
def test_a_component_of_few_images_has_few_centres(rows):
    noise = torch.Generator().manual_seed(0)
    far = torch.tensor([[5.0, 0.0]]) + 0.1 * torch.randn(rows, 2, generator=noise)
    means = torch.cat([torch.tensor([[-5.0, 0.0]]) + torch.randn(40, 2, generator=noise), far])
    found = split_components(pair(), means, torch.full_like(means, 0.01), torch.eye(2), 5)
    used = (found.weights.view(2, 5) > 0).sum(1)
    assert 2 <= used[0] <= 5
    assert min(rows, 1) <= used[1] <= max(min(rows, 1), rows // LEAST_ROWS)
    assert float(found.weights.sum()) == pytest.approx(1.0)
    assert found.means.isfinite().all()
    assert torch.linalg.cholesky(found.covariances).isfinite().all()


def test_no_centre_is_of_fewer_than_four_images():
    means = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    means[:5] *= 20  # each of which k-means makes a centre of its own
    whole = GaussianMixture(torch.ones(1), means.mean(0)[None], torch.cov(means.T)[None])
    found = split_components(whole, means, torch.full_like(means, 0.01), torch.eye(3), 100)
    rows = found.weights * len(means)
    assert 20 < int((rows > 0).sum()) < 100
    assert float(rows[rows > 0].min()) >= LEAST_ROWS - 1e-3
    assert float(rows.sum()) == pytest.approx(400, rel=1e-4)
    torch.testing.assert_close(density(found).mean, means.mean(0), atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # three centres of two clumps
def test_a_model_draws_from_centres_as_they_are_fitted_and_keeps_them(tmp_path):
    means, log_variance = clumped()
    model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=2, base_components=2, base_centres=3))
    encodings = Encodings(means, log_variance)
    fit_base(model, encodings, SamplerSettings(base_components=2, base_centres=3), seed=0)
    noise = torch.Generator().manual_seed(0)
    drawn = model.whitening.unwhiten(model.draw_base(20_000, noise))
    torch.testing.assert_close(drawn.mean(0), means.mean(0), atol=0.1, rtol=0.0)
    torch.testing.assert_close(torch.cov(drawn.T), encodings.covariance(), atol=0.2, rtol=0.0)
    nearest = torch.cdist(drawn, CLUMPS).amin(1)  # of N(0, STD² I) in two dimensions: STD √(π/2)
    assert float(nearest.mean()) == pytest.approx(STD * 1.2533, rel=0.05)
    model.save_pretrained(tmp_path)
    again = LDCVAE.from_pretrained(tmp_path)
    assert "of up to 3 centres each" in (tmp_path / "README.md").read_text()
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(model.sample_latents(9, generators[0]), again.sample_latents(9, generators[1]))


@pytest.mark.parametrize(("dim", "components", "centres"), [(3, 2, 1), (3, 2, 3), (520, 1, 1)])
def test_a_spread_is_of_the_deviations_from_the_centres(dim, components, centres):
    """Full covariances, with centres too, and those of low rank."""
    noise = torch.Generator().manual_seed(0)
    encodings = Encodings(torch.randn(220, dim, generator=noise), torch.full((220, dim), -2.0))
    drawn = []
    for spread in (1.0, 0.5):
        settings = SamplerSettings(base_components=components, base_centres=centres, base_spread=spread)
        model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=dim, **base_fields(dim, *settings.base_shape)))
        fit_base(model, encodings, settings, seed=0)
        draws = model.draw_base(300, torch.Generator().manual_seed(1))
        which = torch.multinomial(model.base_weights, 300, True, generator=same_noise(300, dim))
        drawn.append(draws - model.base_means[which])
    torch.testing.assert_close(drawn[1], 0.5 * drawn[0], atol=1e-4, rtol=1e-4)


def same_noise(n, dim):
    """A generator where `draw_base` draws components: after the noise."""
    generator = torch.Generator().manual_seed(1)
    torch.randn(n, dim, generator=generator)
    return generator


def test_fit_takes_centres():
    images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sampler = SamplerSettings(steps=3, particles=32, width=8, depth=1, base_components=2, base_centres=4)
    model = fit(images, autoencoder=AutoencoderSettings(epochs=1), sampler=sampler, progress=False)
    assert model.config.base_centres == 4
    assert model.base_means.shape == (8, 8)
    assert model.sample(3).isfinite().all()


def test_centres_need_full_covariances():
    with pytest.raises(ConfigError, match=r"sampler\.base_centres: 4 need full covariances, and 10 .* d = 1,024"):
        load_config(overrides=["model.latent_dim=1024", "sampler.base_centres=4"])
    load_config(overrides=["model.latent_dim=1024", "sampler.base_centres=4", "sampler.base=normal"])
    for wrong in ({"base_components": 2, "base_kind": "diagonal"}, {"base_components": 0}):
        with pytest.raises(ValueError, match="base_centres is 2: it is 1, or more where"):
            LDCVAEConfig((1, 8, 8), base_centres=2, **wrong)
