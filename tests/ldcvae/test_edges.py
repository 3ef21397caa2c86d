"""What users hit at the edges: latents nearly flat, modules as functions, calls that fail, one image too few."""

import copy
import warnings

import pytest
import torch
from torch import nn

from ldcvae import (
    LDCVAE,
    AutoencoderSettings,
    DecoderSettings,
    Encodings,
    LDCVAEConfig,
    SamplerSettings,
    fit,
    fit_sampler,
    stein_direction,
    svgd,
)
from ldcvae.densities import Gaussian, GaussianMixture, KernelMixture, LowRankMixture, gaussian, langevin
from ldcvae.densities.low_rank import fit_gaussians
from ldcvae.metrics.diagnostics import kernel_stein_discrepancy
from ldcvae.metrics.neighbours import ball_radii
from ldcvae.rivals import fits
from ldcvae.rivals.fitting import Budget, Fitting
from ldcvae.rivals.objectives import imq_mmd2
from ldcvae.training.base import fit_base
from ldcvae.variants import GENERATORS

SAMPLER = SamplerSettings(steps=4, particles=32, width=16, depth=1, checkpoint_steps=2, base_components=2)


def images(count, side=4):
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))


def weights_of(model):
    return copy.deepcopy(model.state_dict()), model.config


def unchanged(model, before):
    tensors, config = before
    now = model.state_dict()
    return config == model.config and all(torch.equal(tensors[name], now[name]) for name in tensors)


def test_modules_in_a_pair_are_called_like_functions(tmp_path):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))  # points, where an own network gives two numbers each
    decoder = nn.Sequential(nn.Linear(3, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))  # images, not logits
    settings = {"sampler": SAMPLER, "progress": False}
    model = fit_sampler((encoder, decoder), images(40), **settings)
    functions = fit_sampler((lambda x: encoder(x), lambda z: decoder(z)), images(40), **settings)
    z = torch.randn(5, 3)
    assert torch.allclose(model.decode(z), decoder(z), atol=1e-5)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), functions.state_dict().values(), strict=True)
    )
    assert not [name for name in model.state_dict() if name.startswith(("encoder", "decoder"))]
    model.save_pretrained(tmp_path)
    again = LDCVAE.from_pretrained(tmp_path, encoder=encoder, decoder=decoder)
    noise = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(again.sample(4, noise[0]), model.sample(4, noise[1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": images(10)}, "sampler.base_components: 10, with 9 training images; at most one for each"),
        ({"decoder": DecoderSettings(adversarial=2.0)}, "epochs=0"),
        ({"images": images(40, side=3), "decoder": DecoderSettings(epochs=1)}, "images of 3 pixels are too small"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"device": "mps"}, "float64"),
    ],
)
def test_what_a_later_phase_would_refuse_is_refused_before_the_first_step(given, message):
    def called(record):
        raise AssertionError("a phase has begun")

    arguments = {"images": images(40), "autoencoder": AutoencoderSettings(epochs=1), "callback": called} | given
    with pytest.raises(ValueError, match=message):
        fit(**arguments, progress=False)


def test_a_call_that_fails_leaves_the_model_as_it_was():
    short = {"autoencoder": AutoencoderSettings(epochs=1), "sampler": SAMPLER, "progress": False}
    model = fit(images(40), **short)
    before = weights_of(model)
    with pytest.raises(ValueError, match="10, with 5 training images"):
        fit_sampler(model, images(5), sampler=SamplerSettings(base_components=10), progress=False)
    lost = DecoderSettings(epochs=1, perceptual=1.0, perceptual_weights="/nowhere.pt")
    with pytest.raises(FileNotFoundError):
        fit(images(40), model, decoder=lost, **short)
    assert unchanged(model, before)


def test_any_whole_number_is_a_seed():
    short = {"autoencoder": AutoencoderSettings(epochs=1), "sampler": SAMPLER, "progress": False}
    for seed in (-1, 2**40):
        assert fit(images(40), **short, seed=seed).sample(2).isfinite().all()


@pytest.mark.parametrize("small", [1e-3, 1e-4])
def test_nearly_flat_encodings_are_whitened_too(small):
    noise = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=noise, dtype=torch.float64))[0]
    scale = torch.tensor([1.0, 1.0, small], dtype=torch.float64)
    z = (torch.randn(5000, 3, generator=noise, dtype=torch.float64) * scale @ rotation).float()
    encodings = Encodings(z, torch.full_like(z, -40.0))
    white = encodings.whitening().whiten(z)
    assert torch.cov(white.T.double()).diagonal().sub(1).abs().max() < 0.05


def test_a_net_for_other_directions_leaves_the_models_own_alone():
    short = {"autoencoder": AutoencoderSettings(epochs=1), "sampler": SAMPLER, "progress": False}
    model = fit(images(60), **short)
    before, budget = weights_of(model), Budget(sampler=SamplerSettings(steps=5, particles=32, width=8, depth=1))
    encodings = model.encodings(images(60))

    def latents(draw):
        return draw(7, torch.Generator().manual_seed(3))

    draws = [GENERATORS[name].fit(Fitting(name, model, encodings, budget=budget)) for name in ("drift", "stein")]
    first = latents(draws[0])
    assert unchanged(model, before)
    assert not torch.equal(first, latents(draws[1]))
    assert torch.equal(first, latents(GENERATORS["drift"].fit(Fitting("drift", model, encodings, budget=budget))))


def test_foreign_latents_of_another_scale_are_refused():
    decode = lambda z: torch.sigmoid(z.new_zeros(len(z), 1, 4, 4))  # noqa: E731
    for encode, message in (
        (lambda x: 1e-4 * x.flatten(1)[:, :3], "standard deviation of"),
        (lambda x: (x.flatten(1)[:, :3], torch.full((len(x), 3), 12.0)), "log variances of 8 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_sampler((encode, decode), images(40), sampler=SAMPLER, progress=False)


def test_two_particles_repel_each_other_and_no_steps_are_none():
    start = torch.tensor([[0.1, 0.0], [-0.1, 0.0]])
    apart = svgd(start, lambda z: -z, steps=300)
    assert float((apart[0] - apart[1]).norm()) > 0.5
    assert torch.equal(svgd(start, lambda z: -z, steps=0), start)
    assert svgd(start[:1], lambda z: -z, steps=300).norm() < 0.05  # one goes to the mode


def test_fits_do_not_depend_on_the_latents_scale():
    noise = torch.Generator().manual_seed(0)
    line = torch.randn(500, 1, generator=noise) @ torch.ones(1, 2) * 30.0  # collapsed, along no axis
    for fitted in (Gaussian.fit(line), GaussianMixture.fit(line, 2)):
        assert fitted.sample(10, noise).isfinite().all()
    z = torch.randn(4000, 2, generator=noise)
    for factor in (1e-3, 1.0, 1e3):
        assert torch.allclose(Gaussian.fit(factor * z).covariance / factor**2, torch.cov(z.T), rtol=1e-4, atol=1e-5)
        for fitted in (GaussianMixture.fit(factor * z, 1), LowRankMixture.fit(factor * z, 1, rank=0)):
            covariance = fitted.covariances() if isinstance(fitted, LowRankMixture) else fitted.covariances
            wanted = torch.cov(z.T) if fitted.kind == "full" else torch.diag(z.var(0))
            assert torch.allclose(covariance[0] / factor**2, wanted, rtol=1e-2, atol=1e-3)


def test_latents_along_one_line_in_many_dimensions_have_a_gaussian():
    noise = torch.Generator().manual_seed(0)
    line = torch.randn(1000, 1, generator=noise) @ torch.randn(1, 256, generator=noise)
    for fitted in (Gaussian.fit(line), GaussianMixture.fit(line, 1)):
        draws = fitted.sample(4000, noise)
        assert (draws.std(0) / line.std(0) - 1).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["full", "low_rank"])
def test_of_a_mixture_none_can_be_drawn(kind):
    fitted = fit_gaussians(torch.randn(50, 4), 2, kind=kind, rank=1)
    assert fitted.sample(0).shape == (0, 4)


def test_encodings_do_not_depend_on_the_batch():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6))
    decoder = nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)))
    model = LDCVAE.from_networks(encoder, decoder, image_shape=(1, 4, 4), latent_dim=3).train()
    whole, before = model.encodings(images(20)), encoder[2].running_mean.clone()
    assert torch.allclose(model.encodings(images(20)[:3]).mean, whole.mean[:3], atol=1e-6)
    assert torch.equal(encoder[2].running_mean, before)
    assert encoder.training


def test_too_few_rows_are_an_error_and_no_nan():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        ball_radii(torch.randn(5, 2), k=0)
    with pytest.raises(ValueError, match="at least 2 particles, got 1"):
        kernel_stein_discrepancy(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="at least 2 latents, got 1"):
        imq_mmd2(torch.zeros(1, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("steps", [12, 24, 60, 119, 120])
def test_hmc_costs_what_its_record_says(steps, monkeypatch):
    asked = []
    density = KernelMixture(torch.zeros(5, 2), torch.zeros(5, 2))
    monkeypatch.setattr(KernelMixture, "score", lambda self, z: asked.append(1) or -z)
    monkeypatch.setattr(fits, "_gibbs_density", lambda fitting: density)
    budget = Budget(chain_steps=steps)
    model = LDCVAE(LDCVAEConfig((1, 4, 4), latent_dim=2))
    encodings = Encodings(torch.randn(20, 2), torch.zeros(20, 2))
    draw = fits.hmc_chain(Fitting("hmc", model, encodings, budget=budget))
    draw(8, torch.Generator())
    assert len(asked) == GENERATORS["hmc"].passes(budget, 2)


def test_a_mixture_is_evaluated_in_chunks(monkeypatch):
    noise = torch.Generator().manual_seed(0)
    mixture = GaussianMixture(torch.ones(3), torch.randn(3, 2, generator=noise), torch.eye(2).repeat(3, 1, 1))
    z = torch.randn(10, 2, generator=noise)
    whole = mixture.energy(z), mixture.score(z)
    monkeypatch.setattr(gaussian, "_CHUNK_NUMBERS", 12)  # two rows
    torch.testing.assert_close((mixture.energy(z), mixture.score(z)), whole)
    assert mixture.energy(z[:0]).shape == (0,)
    assert mixture.score(z[:0]).shape == (0, 2)


def test_kinds_of_covariances_are_named_right():
    with pytest.raises(ValueError, match="unknown kind 'ful': choose full, low_rank, diagonal"):
        fit_gaussians(torch.randn(50, 4), 2, kind="ful")
    with pytest.raises(ValueError, match="rank is 0: kind low_rank needs at least 1"):
        fit_gaussians(torch.randn(50, 4), 2, kind="low_rank")


def test_a_model_takes_doubles_and_draws_none():
    model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=3, base_components=2))
    assert model.sample(0).shape == (0, 1, 8, 8)
    assert model.reconstruct(torch.rand(2, 1, 8, 8).double()).shape == (2, 1, 8, 8)
    assert not model.sample_latents(3).requires_grad


def test_networks_that_would_not_be_used_are_refused():
    with pytest.raises(ValueError, match="say 'custom'"):
        LDCVAE(LDCVAEConfig((1, 8, 8)), nn.Identity(), nn.Identity())


def test_laplace_kernels_cusp_has_no_slope_in_float32_either():
    z = torch.randn(512, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[:8] = z[8:16]  # and some that coincide
    directions = [stein_direction(part, -part, [0.3], "laplace") for part in (z, z.float())]
    assert float((directions[1].double() - directions[0]).abs().max()) < 0.02  # a near pair or two of 512


@pytest.mark.parametrize("dim", [32, 64])
def test_the_smallest_variance_of_flat_latents_is_not_a_rounding_error(dim):
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(300, 2, generator=generator) @ torch.randn(2, dim, generator=generator)
    for density in (Gaussian.fit(flat), GaussianMixture.fit(flat, 2)):
        assert density.smallest_variance() > 0
        assert bool(langevin(density, 5, levels=2, burn_in=1, thin=1).isfinite().all())


def nearly_flat(count=100, dim=144):
    """Points in more dimensions than there are of them, as an encoder without noise gives them."""
    generator = torch.Generator().manual_seed(0)
    return Encodings(5 * torch.randn(count, dim, generator=generator), torch.full((count, dim), -16.0))


def test_generators_and_base_of_flat_points_are_as_wide_as_they_are():
    encodings = nearly_flat()
    model = LDCVAE(LDCVAEConfig((1, 4, 4), latent_dim=144, base_components=10))
    whitened = encodings.whitening().whiten(encodings.draw(4000, torch.Generator().manual_seed(1)))
    fit_base(model, encodings, SamplerSettings(base_components=10), 0)
    assert float(model.draw_base(4000).std(0).max()) < 1.5 * float(whitened.std(0).max())
    draws = GENERATORS["gaussian"].fit(Fitting("gaussian", model, encodings))(4000, torch.Generator().manual_seed(2))
    assert float(encodings.whitening().whiten(draws).std(0).max()) < 1.5 * float(whitened.std(0).max())


def test_functions_are_not_trained_by_fit_and_the_callers_random_numbers_stay(tmp_path):
    mixing = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    pair = (lambda x: x.flatten(1) @ mixing.T, lambda z: torch.sigmoid(z @ mixing).unflatten(1, (1, 4, 4)))
    torch.manual_seed(5)
    expected = torch.random.get_rng_state()
    model = fit_sampler(pair, images(40), sampler=SAMPLER, progress=False)
    assert torch.equal(torch.random.get_rng_state(), expected)
    before = weights_of(model)
    with pytest.raises(ValueError, match="functions, which cannot be trained: use fit_sampler"):
        fit(images(40), model, sampler=SAMPLER, progress=False)
    assert unchanged(model, before)


def test_a_model_is_loaded_to_where_its_networks_are(tmp_path):
    encoder, decoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 6)), nn.Sequential(nn.Linear(3, 16))
    decoder.append(nn.Unflatten(1, (1, 4, 4)))
    LDCVAE.from_networks(encoder, decoder, image_shape=(1, 4, 4), latent_dim=3).save_pretrained(tmp_path)
    with warnings.catch_warnings(action="ignore"):  # tensors of device meta have no numbers to be given
        there = LDCVAE.from_pretrained(tmp_path, encoder=encoder.to("meta"), decoder=decoder.to("meta"))
    assert there.device.type == "meta"


def test_a_card_is_of_the_model_that_was_saved_last_unless_somebody_wrote_it(tmp_path):
    for dim in (3, 5):
        LDCVAE(LDCVAEConfig((1, 4, 4), latent_dim=dim)).save_pretrained(tmp_path)
        assert f"Latents of {dim} dimensions" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("# Mine")
    LDCVAE(LDCVAEConfig((1, 4, 4))).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine"


def test_large_images_are_encoded_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("ldcvae.batches._NUMBERS", 7 * 16)
    sizes, model = [], LDCVAE(LDCVAEConfig((1, 4, 4)))
    model.encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    assert len(model.encodings(images(20))) == 20
    assert sizes == [7, 7, 6]
