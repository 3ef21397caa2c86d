import json
import math
import subprocess
import sys

import pytest
import torch

from ldcvae import LDCVAE, Encodings, LDCVAEConfig
from ldcvae.networks import build_decoder, build_encoder, choose_network
from ldcvae.spatial import spatial_grid

NETWORKS = [
    ("mlp", (1, 8, 8)),
    ("mlp", (3, 8, 8)),
    ("conv", (1, 28, 28)),
    ("conv", (3, 32, 32)),
    ("resnet", (1, 28, 28)),
    ("resnet", (3, 32, 32)),
    ("resnet", (3, 64, 64)),
    ("spatial", (1, 8, 8)),
    ("spatial", (1, 28, 28)),
    ("spatial", (3, 32, 32)),
]


def dimension(name, shape):
    """A d that the network knows."""
    return math.prod(spatial_grid(shape)) if name == "spatial" else 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(**changes):
    torch.manual_seed(0)
    return LDCVAE(
        LDCVAEConfig(**{"image_shape": (1, 8, 8), "latent_dim": 3, "width": 16, "sampler_width": 16} | changes)
    )


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_networks_have_the_right_shapes_and_every_parameter_gets_a_gradient(name, shape):
    d = dimension(name, shape)
    encoder, decoder = (build(name, shape, d, width=8, depth=1) for build in (build_encoder, build_decoder))
    x = torch.rand(2, *shape)
    output = encoder(x)
    assert output.shape == (2, 2 * d)
    logits = decoder(output[:, :d])
    assert logits.shape == x.shape
    # A residual block starts as the identity: its first layers get a gradient once its last one has moved.
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (decoder(encoder(x)[:, :d]) - x).square().sum().backward()
        optimizer.step()
    missing = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad[:10].abs().sum() > 0]
    missing += [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_width_and_depth_change_the_size(name, shape):
    def size(width, depth):
        return sum(p.numel() for p in build_encoder(name, shape, dimension(name, shape), width, depth).parameters())

    assert size(8, 1) < size(16, 1)
    assert size(8, 1) < size(8, 2)


def test_spatial_latents_keep_their_place():
    """What changes in one corner of an image changes latents of that corner, and the other way round."""
    torch.manual_seed(0)
    shape, channels = (1, 64, 64), 2
    encoder, decoder = (build("spatial", shape, channels * 64, 8, 0) for build in (build_encoder, build_decoder))
    x = torch.rand(1, *shape, requires_grad=True)
    mean, log_variance = encoder(x).view(2, channels, 8, 8)
    corner = torch.zeros_like(x)
    corner[..., :16, :16] = 1.0
    for part in (mean, log_variance):
        (grad,) = torch.autograd.grad(part[:, 0, 0].sum(), x, retain_graph=True)
        assert float((grad * corner).abs().sum()) > 0.3 * float(
            grad.abs().sum()
        )  # a sixteenth of the image; group norm sees all of it
    z = torch.randn(1, channels * 64, requires_grad=True)
    (grad,) = torch.autograd.grad(decoder(z)[..., :4, :4].sum(), z)
    place = grad.view(channels, 8, 8).abs().sum(0)
    assert float(place[:3, :3].sum()) > 0.3 * float(place.sum())
    with pytest.raises(
        ValueError, match=r"latents of 8x8 places: latent_dim must be a multiple of 64, got 100; try 128"
    ):
        build_decoder("spatial", shape, 100, 8, 1)


def test_auto_network_and_its_errors():
    assert [choose_network("auto", (1, s, s)) for s in (8, 28, 32, 64)] == ["mlp", "conv", "conv", "resnet"]
    with pytest.raises(ValueError, match="unknown network 'transformer': choose mlp, conv, resnet"):
        choose_network("transformer", (1, 8, 8))
    with pytest.raises(ValueError, match=r"unknown network 'unet': did you mean resnet\?"):
        choose_network("unet", (1, 8, 8))
    with pytest.raises(ValueError, match="divisible by 4, got 30x30"):
        choose_network("conv", (1, 30, 30))


@pytest.mark.parametrize("components", [0, 4])
def test_save_and_load_give_the_same_images(tmp_path, components):
    model = small(base_components=components)
    model.set_whitening(Encodings(torch.randn(50, 3) * 2 + 1, torch.zeros(50, 3)).whitening())
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"model.safetensors", "config.json"}
    assert json.loads((tmp_path / "config.json").read_text())["image_shape"] == [1, 8, 8]
    loaded = LDCVAE.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded.sample(6, generator()), model.sample(6, generator()))


def test_a_folder_without_a_model_is_an_error_not_a_download(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        LDCVAE.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        LDCVAE.from_pretrained("somebody/some-model")


def test_an_untrained_sampler_draws_the_gaussian_fit():
    model = small()
    encodings = Encodings(torch.randn(500, 3, generator=generator()) @ torch.randn(3, 3) + 2, torch.zeros(500, 3))
    model.set_whitening(encodings.whitening())
    with torch.no_grad():
        z = model.sample_latents(50_000, generator())
    torch.testing.assert_close(z.mean(0), encodings.mean.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(z.T), encodings.covariance(), atol=0.0, rtol=0.1)


@pytest.mark.parametrize("copies", [1, 3])  # fewer and more components than dimensions go different ways
def test_base_mixture_has_the_mixtures_moments(copies):
    model = small(base_components=2 * copies)
    weights = torch.tensor([0.25, 0.75]).repeat(copies) / copies
    means = torch.tensor([[4.0, 0, 0], [0, -4.0, 0]]).repeat(copies, 1)
    covariances = torch.stack([torch.eye(3), torch.diag(torch.tensor([0.1, 1.0, 2.0]))]).repeat(copies, 1, 1)
    model.set_base(weights, means, covariances)
    u = model.draw_base(100_000, generator())
    mean = weights @ means
    second = (weights[:, None, None] * (covariances + means[:, :, None] * means[:, None])).sum(0)
    torch.testing.assert_close(u.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(u.T), second - torch.outer(mean, mean), atol=0.1, rtol=0)


KINDS = {"full": 0, "low_rank": 2, "diagonal": 0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("components", [2, 5])
def test_every_kind_of_base_has_its_moments_and_is_kept(tmp_path, kind, components):
    model = small(base_components=components, base_kind=kind, base_rank=KINDS[kind])
    weights, means = torch.arange(1.0, 1 + components), 2 * torch.randn(components, 3, generator=generator(1))
    weights /= weights.sum()
    factors = torch.randn(components, 3, KINDS[kind], generator=generator(2))
    variances = 0.1 + torch.rand(components, 3, generator=generator(3))
    covariances = factors @ factors.mT + torch.diag_embed(variances)
    model.set_base(weights, means, *([covariances] if kind == "full" else [factors, variances]))
    u = model.draw_base(100_000, generator())
    mean = weights @ means
    second = (weights[:, None, None] * (covariances + means[:, :, None] * means[:, None])).sum(0)
    torch.testing.assert_close(u.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(u.T), second - torch.outer(mean, mean), atol=0.1, rtol=0.03)
    hot = model.draw_base(100_000, generator(), 2.0)
    second = (weights[:, None, None] * (4 * covariances + means[:, :, None] * means[:, None])).sum(0)
    torch.testing.assert_close(hot.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(hot.T), second - torch.outer(mean, mean), atol=0.3, rtol=0.03)
    model.update_config(temperature=0.5)  # which a model keeps, and a call may change
    model.save_pretrained(tmp_path)
    again = LDCVAE.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.draw_base(50, generator()), model.draw_base(50, generator()))
    assert torch.equal(again.sample_latents(50, generator()), model.sample_latents(50, generator(), 0.5))
    assert not torch.equal(again.sample(50, generator()), model.sample(50, generator(), 1.0))


@pytest.mark.parametrize(("components", "d"), [(10, 8), (10, 16), (100, 16)])  # few and many, as published
def test_draws_of_a_full_base_are_what_they_were_to_the_bit(components, d):
    model = small(base_components=components, latent_dim=d)
    root = torch.randn(components, d, d, generator=generator(1))
    weights, means = (
        torch.rand(components, generator=generator(2)),
        torch.randn(components, d, generator=generator(3)),
    )
    model.set_base(weights, means, root @ root.mT + torch.eye(d))

    def before(n, generator):  # 0.2.0's, word for word
        noise = torch.randn((n, d), generator=generator)
        component = torch.multinomial(model.base_weights, n, replacement=True, generator=generator)
        if components > d:
            return model.base_means[component] + (model.base_scales[component] @ noise[:, :, None])[:, :, 0]
        every = model.base_means[:, None] + noise @ model.base_scales.mT
        return every[component, torch.arange(n)]

    for n in (6, 512, 10_000):
        assert torch.equal(model.draw_base(n, generator()), before(n, generator()))


def test_an_old_config_means_full_covariances_and_a_new_sampler_chooses(tmp_path):
    model = small(base_components=2)
    assert "base_noise" not in model.state_dict()  # the weights are those of 0.2.0
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert (config.pop("base_kind"), config.pop("base_rank")) == ("full", 0)
    path.write_text(json.dumps(config))
    assert LDCVAE.from_pretrained(tmp_path).config == model.config
    wide = small(latent_dim=600)
    for components, kind, rank in [(3, "low_rank", 32), (0, "full", 0), (4000, "diagonal", 0), (2, "low_rank", 32)]:
        wide.reset_sampler(16, 1, components)
        assert (wide.config.base_components, wide.config.base_kind, wide.config.base_rank) == (components, kind, rank)
        assert wide.draw_base(7, generator()).shape == (7, 600)
    with pytest.raises(ValueError, match="choose full, low_rank, diagonal"):
        LDCVAEConfig((1, 8, 8), base_kind="sparse")
    with pytest.raises(ValueError, match="base_rank is 3"):
        LDCVAEConfig((1, 8, 8), base_rank=3)


def test_whitening_makes_the_aggregate_posterior_white_and_comes_back():
    mean = torch.randn(2000, 4, generator=generator()) @ torch.randn(4, 4, generator=generator(1)) + 3
    encodings = Encodings(mean, torch.full((2000, 4), -1.0))
    whitening = encodings.whitening()
    draws = encodings.draw(200_000, generator(2))
    white = whitening.whiten(draws)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(4), atol=0.03, rtol=0)
    torch.testing.assert_close(whitening.unwhiten(white), draws, atol=1e-3, rtol=0)


def test_posterior_noise_share_scales_the_draws():
    encodings = Encodings(torch.zeros(10, 2), torch.zeros(10, 2))
    assert encodings.draw(100, generator(), noise=0.0).abs().max() == 0
    assert float(encodings.draw(50_000, generator(), noise=0.5).std()) == pytest.approx(0.5, rel=0.02)


def test_log_density_terms_add_up():
    model, x = small(inverse_temperature=3.0), torch.rand(4, 1, 8, 8)
    terms = model.log_density(x, generator())
    torch.testing.assert_close(terms.elbo, -3.0 * terms.reconstruction - terms.kl)
    exact = model.log_density(x)
    errors = (model.reconstruct(x) - x).square().sum((1, 2, 3))
    torch.testing.assert_close(exact.reconstruction, errors)


def test_unknown_likelihood_names_the_choices():
    with pytest.raises(ValueError, match="gaussian or bernoulli"):
        LDCVAEConfig((1, 8, 8), likelihood="poisson")


def test_the_method_imports_neither_ray_nor_the_pipeline():
    code = (
        "import sys, pkgutil, importlib, ldcvae\n"
        "[importlib.import_module('ldcvae.' + m.name) for m in pkgutil.iter_modules(ldcvae.__path__)]\n"
        "print([m for m in ('ray', 'fsspec', 'pydantic', 'pipeline') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_a_saved_model_has_a_card_that_says_how_it_was_made(tmp_path):
    model = small(base_components=4, decoder_epochs=2, adversarial=4.0)
    model.save_pretrained(tmp_path, model_card_kwargs={"data": "nine cats"})
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ldcvae")
    for words in ("8x8 pixels, 1 channel\n", "Data: nine cats.", "weight 4, 2 epochs", "a mixture of 4 Gaussians"):
        assert words in card
    assert "It has not been judged." in card
