"""Phase `decoder`: the discriminator's losses in closed form, what stays as it is, resuming, settings, upsampling."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ldcvae import LDCVAE, AutoencoderSettings, DecoderSettings, LDCVAEConfig, SamplerSettings, fit
from ldcvae.discriminator import adaptive_factor, discriminator_loss, generator_loss, patch_discriminator
from ldcvae.encodings import Encodings
from ldcvae.networks import build_decoder
from ldcvae.perceptual import feature_distance, load_features
from ldcvae.training import decoder as module
from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.monitor import NonFiniteLossError
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World

SETTINGS = DecoderSettings(epochs=2, batch_size=16, width=4, judged=1.0)
SPEED = AutoencoderSettings(bf16=False, compile=False, batch_size=16)
SAMPLER = SamplerSettings(base_components=2, steps=4, particles=16, width=8, depth=1, checkpoint_steps=4)


def pixels(n=40, side=8, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


def small_model(**changes):
    torch.manual_seed(0)
    config = LDCVAEConfig((1, 8, 8), 3, "conv", width=4, base_components=2)
    return LDCVAE(dataclasses.replace(config, **changes)).eval()


def phase(model=None, images=None, state=None, speed=SPEED, features=None, **changes):
    model = small_model() if model is None else model
    images = pixels() if images is None else images
    encodings = encode_split(model.eval(), images)
    return DecoderPhase(
        model,
        images,
        encodings,
        pixels(10, model.config.image_shape[1], model.config.image_shape[0], seed=1),
        dataclasses.replace(SETTINGS, **changes),
        World(),
        0,
        autoencoder=speed,
        sampler=SAMPLER,
        features=features,
        state=state,
    )


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# What the losses are.


def test_two_pixels_in_closed_form():
    """D(x) = w·x + b on images of two pixels: hinge losses and all their gradients by hand."""
    w, b = torch.tensor([2.0, -1.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    real = torch.tensor([[1.0, 0.0], [0.0, 0.5]])  # scores 2.5 (beyond the margin) and 0
    fake = torch.tensor([[0.0, 2.0], [0.25, 0.0]], requires_grad=True)  # scores -1.5 (beyond) and 1
    scores = [images @ w + b for images in (real, fake)]
    loss = discriminator_loss(*scores)
    torch.testing.assert_close(loss, torch.tensor((0 + 1) / 2 + (0 + 2) / 2))
    of_w, of_b, of_fake = torch.autograd.grad(loss, (w, b, fake), retain_graph=True)
    torch.testing.assert_close(of_w, (-real[1] + fake[1].detach()) / 2)
    torch.testing.assert_close(of_b, torch.tensor(0.0))
    torch.testing.assert_close(of_fake, torch.stack([torch.zeros(2), w.detach() / 2]))
    pull = generator_loss(scores[1])
    torch.testing.assert_close(pull, torch.tensor(0.25))
    # The decoder is pulled where the discriminator is sure, too.
    torch.testing.assert_close(torch.autograd.grad(pull, fake)[0], -w.detach().expand(2, 2) / 2)


def test_the_ratio_of_gradients_is_capped():
    loss, pull = torch.tensor([6.0, 8.0]), torch.tensor([0.0, 0.1])
    assert float(adaptive_factor(loss, pull, 1e4)) == pytest.approx(10 / 0.1001, rel=1e-4)
    assert float(adaptive_factor(loss, pull, 3.0)) == 3.0


@pytest.mark.parametrize(("shape", "scores"), [((1, 4, 4), 1), ((1, 8, 8), 2), ((3, 9, 13), 2), ((5, 28, 28), 7)])
def test_the_discriminator_takes_any_size_and_channels(shape, scores):
    network = patch_discriminator(shape[0], 4)
    found = network(torch.rand(2, *shape))
    assert found.shape == (2, 1, scores, shape[2] // 4)
    assert found.requires_grad


def test_its_layers_keep_to_the_spectral_norm():
    torch.manual_seed(0)
    network = patch_discriminator(2, 8)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3.0)
        for _ in range(30):  # a power iteration each
            network(torch.rand(1, 2, 16, 16))
        for layer in network.eval():
            if parametrize.is_parametrized(layer):
                assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2)) == pytest.approx(1.0, abs=2e-2)


def test_images_that_are_too_small_for_it():
    with pytest.raises(ValueError, match="images of 3 pixels are too small for the discriminator, which needs 4"):
        patch_discriminator(1, 4, side=3)


def test_features_of_unit_length_are_compared(tmp_path):
    images = torch.tensor([[[[1.0]], [[0.0]]], [[[3.0]], [[4.0]]]])  # (2, 2, 1, 1), its own features
    targets = torch.tensor([[[[0.0]], [[2.0]]], [[[6.0]], [[8.0]]]])
    torch.testing.assert_close(feature_distance(lambda x: x, images, targets), torch.tensor([2.0, 0.0]))
    several = feature_distance(lambda x: [x, x.flatten(1)], images, targets)
    torch.testing.assert_close(several, torch.tensor([4.0, 0.0]))
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        load_features(tmp_path / "nothing")
    (tmp_path / "text").write_text("no network")
    with pytest.raises(ValueError, match="text is no TorchScript file"):
        load_features(tmp_path / "text")


# What a step does.


class _Constant(nn.Module):
    """A discriminator that cannot tell one image from another."""

    def __init__(self):
        super().__init__()
        self.score = nn.Parameter(torch.tensor(0.3))

    def forward(self, images):
        return self.score + 0.0 * images.sum((1, 2, 3))


def gradient(one):
    one._losses()
    return torch.cat([weight.grad.flatten() for weight in one.network.parameters()])


def test_a_discriminator_that_tells_nothing_leaves_the_decoder_alone(monkeypatch):
    alone = gradient(phase(adversarial=0.0))
    assert not torch.equal(gradient(phase()), alone)
    monkeypatch.setattr(module, "patch_discriminator", lambda *_, **__: nn.Sequential(_Constant()))
    told = phase()
    assert torch.equal(gradient(told), alone)
    assert float(told.discriminator[0].score.grad) == 0.0  # as far from both margins: -1 + 1


def test_the_decoder_follows_its_loss_and_the_discriminator_its_own():
    """One step's gradients against autograd on the losses as they are written down."""
    one = phase(sampler_draws=0.5)
    reference = copy.deepcopy(one)
    one._losses()
    images, where = (part.clone() for part in reference.feed.batch(0))
    logits = reference.model.decoder(reference._latents(where))
    images = images / 255
    loss = (torch.sigmoid(logits[:16]) - images).square().sum() / 16
    fakes = torch.sigmoid(logits).detach().clone()
    assert len(fakes) == 24
    judge = reference.discriminator
    order = [row if row % 2 == 0 else 16 + row // 2 for row in range(16)]  # every second shown is a draw of the base
    with parametrize.cached():
        real, fake = judge(images), judge(torch.sigmoid(logits)[order])
        of_judge = torch.autograd.grad(
            discriminator_loss(real, judge(fakes[order])), list(judge.parameters()), retain_graph=True
        )
        of_decoder = torch.autograd.grad(loss + 4.0 * generator_loss(fake), list(reference.network.parameters()))
    for weight, expected in zip(one.network.parameters(), of_decoder, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)
    for weight, expected in zip(one.discriminator.parameters(), of_judge, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_encoder_sampler_and_latents_do_not_move():
    model = small_model()
    kept, images = copy.deepcopy(model), pixels()
    before = encode_split(model, images)
    one = phase(model, images, sampler_draws=0.25, noise=0.1)
    list(one.epochs())
    one.adopt_average()
    assert same(model.encoder, kept.encoder)
    assert same(model.sampler, kept.sampler)
    assert not torch.equal(weights(model.decoder), weights(kept.decoder))
    after = encode_split(model.eval(), images)
    assert torch.equal(after.mean, before.mean)
    assert torch.equal(after.log_variance, before.log_variance)


def test_the_decoder_learns_what_it_is_shown():
    """Squared error alone falls on; against a discriminator decoded images come to have the data's contrast."""
    generator = torch.Generator().manual_seed(0)
    checks = (torch.rand(64, 1, 8, 8, generator=generator) > 0.5).to(torch.uint8) * 255  # no latent can tell these
    spreads = []
    for adversarial in (0.0, 4.0):
        one = phase(None, checks, epochs=40, adversarial=adversarial, width=8, learning_rate=2e-3)
        list(one.epochs())
        one.adopt_average()
        model = one.model.eval()
        decoded = model.decode(encode_split(model, checks).mean)
        spreads.append(float(decoded.detach().std()))
        assert one.history[-1]["reconstruction"] < (one.history[0]["reconstruction"] if not adversarial else 40)
    assert spreads[1] > 1.5 * spreads[0]


CHANGES = [
    {"adversarial": 1.0},
    {"adaptive": True},
    {"adaptive": True, "adaptive_cap": 0.01},
    {"noise": 0.5},
    {"sampler_draws": 0.5},
    {"judged": 0.5},
    {"width": 8},
    {"warm_up": 2},
    {"batch_size": 8},
    {"learning_rate": 1e-3},
    {"discriminator_learning_rate": 1e-2},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: ",".join(change))
def test_every_key_steers_the_phase(change):
    found = []
    for changes in ({key: value for key, value in change.items() if key == "adaptive" and len(change) > 1}, change):
        one = phase(**changes)
        next(one.epochs())
        found.append(weights(one.network))
    assert not torch.equal(*found)


def test_the_average_is_kept():
    one, plain = phase(ema=0.5), phase(ema=0.0)
    for each in (one, plain):
        next(each.epochs())
    assert torch.equal(weights(one.network), weights(plain.network))
    assert not torch.equal(weights(one.averaged), weights(one.network))
    assert plain.averaged is plain.network


def test_a_perceptual_loss_steers_it(tmp_path):
    torch.manual_seed(3)
    torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh())).save(tmp_path / "features.pt")
    path = str(tmp_path / "features.pt")
    with pytest.raises(ValueError, match="perceptual needs a network"):
        phase(perceptual=1.0, perceptual_weights=path)
    one = phase(perceptual=1.0, perceptual_weights=path, features=load_features(path))
    plain = phase()
    for each in (one, plain):
        next(each.epochs())
    assert one.history[0]["perceptual"] > 0
    assert not torch.equal(weights(one.network), weights(plain.network))


def test_the_discriminator_warms_up_alone():
    one, plain = phase(warm_up=3), phase(adversarial=0.0)
    for step in range(4):
        for each in (one, plain):
            each._losses()
            each._update()
        assert torch.equal(weights(one.network), weights(plain.network)) == (step < 3)


def test_rates_fall_on_a_line_to_zero():
    one = phase()
    rates = []
    for _ in one.blocks(1):
        rates.append([group["lr"] for group in one.optimizer.param_groups])
    expected = [[2e-4 * left, 4e-4 * left] for left in (0.75, 0.5, 0.25, 0.0)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))
    assert [group["betas"] for group in one.optimizer.param_groups] == [(0.5, 0.99)] * 2


@pytest.mark.parametrize("option", ["bf16", "channels_last", "fused"])
def test_options_change_speed_not_results(option):
    found = []
    for value in (False, True):
        plain = AutoencoderSettings(bf16=False, channels_last=False, fused=False, compile=False, batch_size=16)
        one = phase(speed=dataclasses.replace(plain, **{option: value}))
        next(one.epochs())
        found.append(weights(one.network))
        assert one.history[0]["discriminator"] == pytest.approx(2.0, abs=0.3)
    torch.testing.assert_close(found[1], found[0], atol=2e-3 if option == "bf16" else 2e-4, rtol=0.05)


# Going on.

TIMING = {"seconds", "time", "images_per_s"}


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"sampler_draws": 0.5, "noise": 0.2, "adaptive": True}], ids=["plain", "all"]
)
def test_a_phase_that_was_killed_goes_on_as_if_it_had_not_been(stop, changes):
    straight = phase(**changes)
    list(straight.blocks(1))
    killed = phase(**changes)
    for step in killed.blocks(1):
        if step == stop:
            break
    state, model = copy.deepcopy(killed.state()), copy.deepcopy(killed.model.state_dict())
    fresh = small_model()
    fresh.load_state_dict(model)
    resumed = phase(fresh, state=state, **changes)
    assert list(resumed.blocks(1)) == list(range(stop + 1, 5))
    assert same(resumed.model, straight.model)
    assert same(resumed.averaged, straight.averaged)
    assert same(resumed.discriminator, straight.discriminator)
    strip = [[{k: v for k, v in r.items() if k not in TIMING} for r in one.history] for one in (resumed, straight)]
    assert strip[0] == strip[1]


def test_a_base_that_was_fitted_is_the_samplers():
    model, images = small_model(), pixels()
    one = phase(model, images, sampler_draws=0.5)
    list(one.epochs())
    one.adopt_average()
    model.eval()
    encodings = encode_split(model, images)
    fitted = {name: tensor.clone() for name, tensor in model.named_buffers()}
    for given in (True, False):
        second = SamplerPhase(model, encodings, Encodings(*encodings_of(model)), SAMPLER, World(), 0, fitted=given)
        assert second.unit > 0
        for name, tensor in model.named_buffers():
            assert torch.equal(tensor, fitted[name]), (given, name)


def encodings_of(model):
    held = encode_split(model, pixels(10, seed=1))
    return held.mean, held.log_variance


def test_a_loss_that_is_not_finite_is_named():
    with pytest.raises(NonFiniteLossError) as caught:
        list(phase(learning_rate=1e30, epochs=4).epochs())
    assert caught.value.term == "reconstruction"
    one = phase(epochs=4)
    with torch.no_grad():
        one.discriminator[-1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError) as caught:
        list(one.epochs())
    assert (caught.value.term, caught.value.step) == ("real_score", 0)
    assert caught.value.term in one.of_discriminator
    assert one.history == []


def test_records_have_losses_scores_and_a_validation():
    shown = []
    one = phase()
    list(one.epochs(shown.append))
    assert [record["epoch"] for record in one.history] == [1, 2]
    names = {"loss", "reconstruction", "adversarial", "discriminator", "real_score", "fake_score", "validation_mse"}
    for record in one.history:
        assert names <= set(record)
        assert record["phase"] == "decoder"
        assert record["adversarial"] == pytest.approx(-record["fake_score"])
        assert record["loss"] == pytest.approx(record["reconstruction"] + 4 * record["adversarial"], rel=1e-5)
    assert shown[-1]["done"] == 1.0
    assert "discriminator" not in phase(adversarial=0.0).state() or phase(adversarial=0.0).discriminator is None


# Around it.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"judged": 0.0}, "judged must be above 0"),
        ({"sampler_draws": 1.5}, "sampler_draws must be at most 1"),
        ({"perceptual": 1.0}, "perceptual is 1.0, but perceptual_weights names no file"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderSettings(**changes)


def test_every_rank_shows_the_discriminator_an_image():
    """Of 16 images .25 are judged whatever the ranks; for eight they are too few, and no rank adds its own."""
    settings = dataclasses.replace(SETTINGS, judged=0.25)
    assert [len(module._shown(settings, 16, World(rank, 4)).images) for rank in range(4)] == [1] * 4
    with pytest.raises(ValueError, match=r"judged=0.25 of 16 images are 4, fewer than the 8 ranks"):
        module._shown(settings, 16, World(0, 8))


def test_fit_has_the_phase_between_and_the_model_says_so(tmp_path):
    images = pixels(60)
    common = {"autoencoder": AutoencoderSettings(epochs=1, batch_size=20), "sampler": SAMPLER, "progress": False}
    records = []
    plain = fit(images, **common)
    model = fit(images, **common, decoder=dataclasses.replace(SETTINGS, sampler_draws=0.5), callback=records.append)
    assert [record["phase"] for record in records] == ["autoencoder", "decoder", "decoder", "sampler"]
    assert same(model.encoder, plain.encoder)
    assert same(model.sampler, plain.sampler)  # latents have not moved
    assert not torch.equal(weights(model.decoder), weights(plain.decoder))
    assert model.config.decoder_note == "decoder trained adversarially, weight 4, 2 epochs"
    assert plain.config.decoder_note == ""
    model.save_pretrained(tmp_path)
    again = LDCVAE.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(*(one.sample(3, torch.Generator().manual_seed(0)) for one in (again, model)))


def test_upsampling_by_nearest_neighbour():
    for name, side, d in (("conv", 8, 3), ("resnet", 32, 3), ("spatial", 32, 64)):
        torch.manual_seed(0)
        network = build_decoder(name, (2, side, side), d, 4, 1, "nearest")
        assert network(torch.randn(2, d)).shape == (2, 2, side, side)
        assert not any(isinstance(layer, nn.ConvTranspose2d) for layer in network.modules())
        assert any(isinstance(layer, nn.ConvTranspose2d) for layer in build_decoder(name, (2, side, side), d, 4, 1))
    with pytest.raises(ValueError, match="'mlp' does not upsample"):
        build_decoder("mlp", (1, 8, 8), 3, 4, 1, "nearest")
    with pytest.raises(ValueError, match="unknown upsample 'cubic'"):
        build_decoder("conv", (1, 8, 8), 3, 4, 1, "cubic")
    assert LDCVAE(LDCVAEConfig((1, 8, 8), 3, "conv", 4, upsample="nearest")).sample(2).shape == (2, 1, 8, 8)


def test_a_constant_layer_is_upsampled_without_a_grid():
    """Inside, where no border is near, equal inputs give equal pixels; a transposed convolution gives four kinds."""
    torch.manual_seed(0)
    layers = {name: build_decoder("conv", (1, 32, 32), 3, 4, 1, name)[5:] for name in ("nearest", "transposed")}
    flat = torch.full((1, 8, 8, 8), 0.7)
    spread = {name: float(network(flat)[0, 0, 8:-8, 8:-8].detach().std()) for name, network in layers.items()}
    assert spread["nearest"] < 1e-6 < 1e-3 < spread["transposed"]
