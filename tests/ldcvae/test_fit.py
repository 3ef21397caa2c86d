"""The front door: `fit` and `fit_sampler` on tensors, own networks and autoencoders of other libraries."""

import copy
import json
import runpy
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from ldcvae import LDCVAE, AutoencoderSettings, LDCVAEConfig, SamplerSettings, fit, fit_sampler

SHORT = {
    "autoencoder": AutoencoderSettings(epochs=2, batch_size=20),
    "sampler": SamplerSettings(steps=6, particles=32, width=16, depth=1, checkpoint_steps=3, base_components=2),
    "progress": False,
}
SAMPLER = {"sampler": SHORT["sampler"], "progress": False}


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_digits().images / 16.0).float()[:, None]


def networks(dim=3, channels=1, side=8, out=None):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, 2 * dim if out is None else out))
    decoder = nn.Sequential(nn.Linear(dim, channels * side * side), nn.Unflatten(1, (channels, side, side)))
    return encoder, decoder


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_one_call_gives_a_model_that_samples_and_is_kept(digits, tmp_path):
    records = []
    model = fit(digits[:200], **SHORT, callback=records.append)
    assert not model.training
    images = model.sample(5, generator=torch.Generator().manual_seed(0))
    assert images.shape == (5, 1, 8, 8)
    assert 0 <= images.min() <= images.max() <= 1
    assert [record["phase"] for record in records] == ["autoencoder"] * 2 + ["sampler"] * 2
    assert all(record["validation_mse"] > 0 for record in records[:2])
    model.save_pretrained(tmp_path)
    again = LDCVAE.from_pretrained(tmp_path)
    assert torch.equal(again.sample(5, generator=torch.Generator().manual_seed(0)), images)


def test_the_seed_fixes_the_model_and_the_callers_random_numbers_go_on(digits):
    torch.manual_seed(1)
    first = fit(digits[:100], **SHORT, seed=3)
    after = torch.rand(1)
    torch.manual_seed(2)
    assert same(first, fit(digits[:100], **SHORT, seed=3))
    assert not same(first, fit(digits[:100], **SHORT, seed=4))
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))


def test_the_model_knows_the_lambda_it_was_trained_with(digits, tmp_path):
    warm = SHORT | {"autoencoder": AutoencoderSettings(epochs=1, batch_size=20, inverse_temperature=7.0)}
    own = LDCVAE.from_networks(*networks(), image_shape=(1, 8, 8), latent_dim=3)
    for given in (None, own, LDCVAE(LDCVAEConfig((1, 8, 8), 2))):
        model = fit(digits[:60], given, **warm)
        terms = model.log_density(digits[:5])
        torch.testing.assert_close(terms.elbo, -7.0 * terms.reconstruction - terms.kl)
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["inverse_temperature"] == 7.0


def test_uint8_and_floats_are_the_same_images(digits):
    pixels = (digits[:60] * 255).round().to(torch.uint8)
    assert same(fit(pixels, **SHORT), fit(pixels.float() / 255, **SHORT))


@pytest.mark.parametrize("count", [2, 3, 12])
def test_a_handful_of_images_is_enough(digits, count):
    model = fit(digits[:count], **SHORT)
    assert bool(model.sample(4).isfinite().all())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 1, 8, 8), "1 images are too few: give at least 2"),
        (torch.rand(5, 8, 8), r"\(N, C, H, W\), got \(5, 8, 8\)"),
        ([[0.0]], r"\(N, C, H, W\), got list"),
        (torch.rand(5, 1, 8, 8) * 255, "floats must lie in"),
        (torch.rand(5, 1, 8, 8) - 0.5, "floats must lie in"),
        (torch.full((5, 1, 8, 8), float("nan")), "floats must lie in"),
        (torch.ones(5, 1, 8, 8, dtype=torch.int64), "int64: give uint8, or floats"),
    ],
)
def test_images_that_cannot_be_trained_on(images, message):
    with pytest.raises(ValueError, match=message):
        fit(images, **SHORT)
    with pytest.raises(ValueError, match=message):
        fit_sampler(LDCVAE(LDCVAEConfig((1, 8, 8), 2)), images, **SAMPLER)


def test_what_else_is_refused_before_the_first_step(digits):
    model = LDCVAE(LDCVAEConfig((1, 8, 8), 2))
    with pytest.raises(ValueError, match=r"images are \(1, 8, 8\) each, but the model takes \(3, 8, 8\)"):
        fit(digits, LDCVAE(LDCVAEConfig((3, 8, 8), 2)), **SHORT)
    with pytest.raises(ValueError, match="latent_dim is 3, but the model's is 2"):
        fit(digits, model, latent_dim=3, **SHORT)
    with pytest.raises(ValueError, match="validation holds no image"):
        fit(digits, validation=digits[:0], **SHORT)
    with pytest.raises(ValueError, match=r"validation images are \(1, 4, 4\)"):
        fit(digits, validation=torch.rand(3, 1, 4, 4), **SHORT)
    with pytest.raises(ValueError, match=r"direction must be one of .* did you mean drift"):
        SamplerSettings(direction="drfit")
    with pytest.raises(ValueError, match=r"uint8: give floats in \[0, 1\]"):
        model.encode(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images are \(2, 1, 4, 4\), this model takes \(B, \*\(1, 8, 8\)\)"):
        model.reconstruct(torch.zeros(2, 1, 4, 4))


def test_own_networks_are_trained_kept_and_loaded(digits, tmp_path):
    encoder, decoder = networks()
    before = copy.deepcopy(encoder)
    model = fit(digits[:100], LDCVAE.from_networks(encoder, decoder, image_shape=(1, 8, 8), latent_dim=3), **SHORT)
    assert not same(encoder, before)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="networks of its own: give them as encoder"):
        LDCVAE.from_pretrained(tmp_path)
    fresh = networks()
    again = LDCVAE.from_pretrained(tmp_path, encoder=fresh[0], decoder=fresh[1])
    assert same(again, model)
    with pytest.raises(ValueError, match="do not fit the networks"):
        LDCVAE.from_pretrained(tmp_path, encoder=networks(4)[0], decoder=networks(4)[1])
    with pytest.raises(ValueError, match="do not fit the networks"):
        LDCVAE.from_pretrained(tmp_path, encoder=nn.Sequential(*fresh[0], nn.Linear(6, 6)), decoder=fresh[1])


def test_a_decoder_of_images_is_as_good_as_one_of_logits(digits):
    encoder, decoder = networks()
    images = nn.Sequential(copy.deepcopy(decoder), nn.Sigmoid())
    of_logits = LDCVAE.from_networks(copy.deepcopy(encoder), decoder, image_shape=(1, 8, 8), latent_dim=3)
    of_images = LDCVAE.from_networks(encoder, images, image_shape=(1, 8, 8), latent_dim=3, logits=False)
    a, b = (fit(digits[:100], model, **SHORT) for model in (of_logits, of_images))
    torch.testing.assert_close(
        a.sample(9, torch.Generator().manual_seed(0)), b.sample(9, torch.Generator().manual_seed(0))
    )


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (networks(out=3)[0], networks()[1], r"the encoder gives \(2, 3\).*needs \(2, 6\): means and log variances"),
        (networks(side=4)[0], networks()[1], r"the encoder fails on a batch of shape \(2, 1, 8, 8\)"),
        (networks()[0], networks(side=4)[1], r"the decoder gives \(2, 1, 4, 4\)"),
        (networks()[0], networks(5)[1], r"the decoder fails on a batch of shape \(2, 3\)"),
    ],
)
def test_own_networks_of_other_shapes(encoder, decoder, message):
    with pytest.raises(ValueError, match=message):
        LDCVAE.from_networks(encoder, decoder, image_shape=(1, 8, 8), latent_dim=3)


def test_a_decoder_beyond_0_and_1_is_refused():
    decoder = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))
    nn.init.constant_(decoder[0].bias, 2.0)
    with pytest.raises(ValueError, match=r"beyond \[0, 1\]"):
        LDCVAE.from_networks(networks()[0], decoder, image_shape=(1, 8, 8), latent_dim=3, logits=False)


def test_trying_networks_out_leaves_them_as_they_were():
    encoder, decoder = networks()
    encoder = nn.Sequential(encoder[0], nn.BatchNorm1d(64), encoder[1]).train()
    kept = copy.deepcopy(encoder)
    LDCVAE.from_networks(encoder, decoder, image_shape=(1, 8, 8), latent_dim=3)
    assert same(encoder, kept)
    assert all(module.training for module in encoder.modules())


def test_own_networks_with_batch_norm_are_judged_by_their_running_statistics(digits):
    encoder, decoder = networks()
    encoder = nn.Sequential(encoder[0], nn.BatchNorm1d(64), encoder[1])
    model = LDCVAE.from_networks(encoder, decoder, image_shape=(1, 8, 8), latent_dim=3)
    model = fit(digits[:100], model, **SHORT)
    statistics = model.encoder[1].running_mean.clone()
    assert bool(statistics.abs().sum() > 0)
    one, many = model.encode(digits[:1]).mean, model.encode(digits[:50]).mean[:1]
    torch.testing.assert_close(one, many)
    assert torch.equal(model.encoder[1].running_mean, statistics)


def test_a_sampler_for_a_trained_autoencoder_leaves_it_alone(digits):
    model = fit(digits[:100], **SHORT)
    encoder, decoder = copy.deepcopy(model.encoder), copy.deepcopy(model.decoder)
    again = fit_sampler(
        model, digits[:100], sampler=SamplerSettings(steps=4, particles=16, base="normal", width=8), progress=False
    )
    assert again is model
    assert same(model.encoder, encoder)
    assert same(model.decoder, decoder)
    assert model.config.base_components == 0
    assert model.sample(3).shape == (3, 1, 8, 8)


def test_points_of_a_linear_autoencoder_get_a_sampler(digits):
    """PCA is an autoencoder too: the sampler's base already has its moments."""
    mean = digits.flatten(1).mean(0)
    basis = torch.pca_lowrank(digits.flatten(1), 5, niter=10)[2]

    def encode(images):
        return (images.flatten(1) - mean) @ basis

    def decode(latents):
        return (latents @ basis.T + mean).clamp(0, 1).unflatten(1, (1, 8, 8))

    model = fit_sampler((encode, decode), digits, **SAMPLER)
    draws = model.sample_latents(4000, torch.Generator().manual_seed(0)).detach()
    truth = encode(digits)
    spread = truth.std(0)
    assert bool(((draws.mean(0) - truth.mean(0)).abs() < 0.15 * spread).all())
    assert bool(((draws.std(0) / spread - 1).abs() < 0.15).all())
    assert model.sample(3).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("encode", "decode", "message"),
    [
        (lambda x: x, lambda z: z, r"encode gives means \(2, 1, 8, 8\)"),
        (lambda x: 1 / 0, lambda z: z, "encode fails on images .* ZeroDivisionError"),
        (lambda x: x.flatten(1), lambda z: 1 / 0, "decode fails on latents"),
        (lambda x: x.flatten(1), lambda z: z, r"decode gives \(2, 64\)"),
        (lambda x: x.flatten(1), lambda z: 2 + z.unflatten(1, (1, 8, 8)), r"in \[0, 1\] are wanted"),
    ],
)
def test_callables_that_do_not_fit(digits, encode, decode, message):
    with pytest.raises(ValueError, match=message):
        fit_sampler((encode, decode), digits, **SAMPLER)


def test_progress_goes_to_stderr_and_can_be_switched_off(digits, capsys):
    fit(digits[:60], **SHORT | {"progress": True})
    shown = capsys.readouterr()
    assert "autoencoder: 100%" in shown.err
    assert "sampler: 100%" in shown.err
    assert shown.out == ""
    fit(digits[:60], **SHORT)
    assert capsys.readouterr().err == ""


def test_a_sampler_of_callables_is_kept_without_the_other_librarys_weights(digits, tmp_path):
    other = nn.Linear(64, 3).requires_grad_(False)

    def encode(images):
        return other(images.flatten(1))

    def decode(latents):
        return torch.sigmoid(latents @ other.weight).unflatten(1, (1, 8, 8))

    model = fit_sampler((encode, decode), digits[:100], **SAMPLER)
    assert not [name for name in model.state_dict() if name.startswith(("encoder", "decoder"))]
    model.save_pretrained(tmp_path)
    again = LDCVAE.from_pretrained(tmp_path, encoder=encode, decoder=decode)
    draws = [one.sample(4, torch.Generator().manual_seed(0)) for one in (model, again)]
    assert torch.equal(*draws)


def test_a_sampler_for_diffusers_autoencoder():
    """examples/diffusers_autoencoder.py, with a few steps."""
    pytest.importorskip("diffusers")
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples/diffusers_autoencoder.py"))
    model = example["main"](steps=3)
    assert model.config.latent_dim == 32
    assert model.sample(2).shape == (2, 1, 8, 8)
    assert len(model.sampler.state_dict()) > 0
