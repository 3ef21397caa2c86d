"""What `fit`, `fit_sampler` and `from_pretrained` make of things given wrongly, or by code that is not ours."""

import re

import pytest
import torch
from torch import nn

from ldcvae import LDCVAE, AutoencoderSettings, DecoderSettings, LDCVAEConfig, SamplerSettings, fit, fit_sampler
from ldcvae.networks import evaluating

SHORT = {"sampler": SamplerSettings(steps=3, base_components=2), "progress": False}
BRIEF = {**SHORT, "autoencoder": AutoencoderSettings(epochs=1)}
IMAGES = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def _decode(z):
    return torch.sigmoid(z).repeat(1, 6)[:, :16].unflatten(1, (1, 4, 4))


def _own(frozen=False):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 6)).requires_grad_(not frozen)
    decoder = nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4))).requires_grad_(not frozen)
    return LDCVAE.from_networks(encoder, decoder, image_shape=(1, 4, 4), latent_dim=3)


def test_a_decoder_of_another_dtype_is_refused_before_training():
    encoder, decoder = nn.Linear(16, 3).bfloat16(), nn.Linear(3, 16).bfloat16()

    def encode(x):
        return encoder(x.flatten(1).bfloat16())

    with pytest.raises(ValueError, match=r"decode fails on latents \(2, 3\) of float32"):
        fit_sampler((encode, lambda z: decoder(z).sigmoid().unflatten(1, (1, 4, 4))), IMAGES, **SHORT)
    pair = encode, lambda z: decoder(z.bfloat16()).sigmoid().unflatten(1, (1, 4, 4)).float()
    assert fit_sampler(pair, IMAGES, **SHORT).sample(3).shape == (3, 1, 4, 4)


def test_modules_of_a_pair_are_used_in_eval_mode_and_left_as_they_were():
    norm = nn.BatchNorm1d(3)
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 3), norm)
    decoder = nn.Sequential(nn.Linear(3, 16), nn.Dropout(), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))
    model = fit_sampler((encoder, decoder.forward), IMAGES, **SHORT)
    z = torch.randn(5, 3)
    assert torch.equal(model.decode(z), model.decode(z))
    assert int(norm.num_batches_tracked) == 0
    assert encoder.training
    assert decoder.training


def test_evaluating_gives_every_part_its_own_mode_back():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    with evaluating(network):
        assert not network[0].training
    assert [part.training for part in network] == [True, False]


def test_an_encoder_may_work_in_place_and_give_a_list():
    images = IMAGES.clone()
    fit_sampler((lambda x: [x.mul_(2).flatten(1), x.flatten(1) * 0], _decode), images, validation=images, **SHORT)
    assert torch.equal(images, IMAGES)


@pytest.mark.parametrize("where", ["training", "validation"])
def test_an_encoder_that_gives_nan_is_told_by_the_image(where):
    bad = IMAGES.clone()
    bad[7] = 1.0
    given = {"training": (bad, IMAGES), "validation": (IMAGES, bad)}[where]

    def encode(x):
        return torch.where((x == 1).all((1, 2, 3))[:, None], torch.nan, x.flatten(1)[:, :3])

    with pytest.raises(ValueError, match=f"for {where} image 7"):
        fit_sampler((encode, _decode), given[0], validation=given[1], **SHORT)


@pytest.mark.parametrize(
    ("autoencoder", "message"),
    [
        ((lambda x: x.flatten(1).numpy(), _decode), "encode gives ndarray"),
        ((lambda x: (x, x, x), _decode), "encode gives Tensor, Tensor, Tensor"),
        ((lambda x: x.flatten(1)[:, :3], lambda z: 3), "decode gives int"),
        (nn.Flatten(), "an LDCVAE or a pair (encode, decode), got Flatten"),
    ],
)
def test_pairs_that_give_something_else(autoencoder, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_sampler(autoencoder, IMAGES, **SHORT)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((IMAGES > 0.5).to(torch.uint8), "uint8 of 0 and 1"),
        (torch.rand(20, 32, 32, 3), "permute(0, 3, 1, 2)"),
        (torch.rand(20, 1, 30, 30), "network mlp"),
        (torch.rand(20, 1, 0, 8), "holds no pixel"),
    ],
)
def test_images_of_another_kind(images, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(images, **BRIEF)


def test_images_that_are_bool_or_want_a_gradient_are_images():
    binary = IMAGES > 0.5
    wanted = fit(binary.float(), **BRIEF).sample_latents(4, torch.Generator().manual_seed(0))
    assert torch.equal(fit(binary, **BRIEF).sample_latents(4, torch.Generator().manual_seed(0)), wanted)
    fit(IMAGES.clone().requires_grad_(), **BRIEF)


@pytest.mark.parametrize("around", [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)])
def test_what_the_caller_has_switched_on_does_not_reach_the_training(around):
    noise = torch.Generator().manual_seed(0)
    wanted = fit(IMAGES, **BRIEF).sample_latents(4, noise)
    with around:
        model = fit(IMAGES, **BRIEF)
    assert torch.equal(model.sample_latents(4, noise.manual_seed(0)), wanted)


def test_networks_without_a_weight_to_train_are_refused():
    with pytest.raises(ValueError, match="no weight that requires a gradient: set requires_grad"):
        fit(IMAGES, _own(frozen=True), **BRIEF)
    model = _own()
    model.decoder.requires_grad_(False)
    fit(IMAGES, model, **BRIEF)  # the encoder's suffice in phase 1
    with pytest.raises(ValueError, match="the decoder has no weight"):
        fit(IMAGES, model, decoder=DecoderSettings(epochs=1, adversarial=0), **BRIEF)


def test_a_perceptual_network_for_other_images_is_refused_before_training(tmp_path):
    path, seen = tmp_path / "features.pt", []
    torch.jit.script(nn.Conv2d(3, 4, 3)).save(path)
    settings = DecoderSettings(epochs=1, adversarial=0, perceptual=1.0, perceptual_weights=str(path))
    with pytest.raises(ValueError, match=r"no features of images \(1, 4, 4\)"):
        fit(IMAGES, decoder=settings, callback=seen.append, **BRIEF)
    assert seen == []


def test_networks_with_tensors_of_five_dimensions_train():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.mix = nn.Parameter(torch.zeros(1, 1, 1, 1, 1)), nn.Conv2d(1, 1, 1)
            self.out = nn.Linear(16, 6)

        def forward(self, x):
            return self.out(self.mix(x).flatten(1)) + self.shift.flatten()

    model = LDCVAE.from_networks(Encoder(), _own().decoder, image_shape=(1, 4, 4), latent_dim=3)
    fit(IMAGES, model, **BRIEF)


def test_a_new_sampler_net_forgets_the_temperature_of_the_last():
    model = _own()
    model.update_config(temperature=1.3)
    assert fit_sampler(model, IMAGES, **SHORT).config.temperature == 1.0
    model.update_config(temperature=1.3)
    assert fit(IMAGES, model, **BRIEF).config.temperature == 1.0


@pytest.mark.parametrize(("shape", "dim"), [((8, 8), 2), ((1, 8, 8), 0), ((1, 0, 8), 2)])
def test_a_model_of_no_size(shape, dim):
    with pytest.raises(ValueError, match=r"image_shape is \(C, H, W\) and latent_dim at least 1"):
        LDCVAE(LDCVAEConfig(shape, dim))


def test_damaged_folders_are_told_by_their_file(tmp_path):
    LDCVAE(LDCVAEConfig((1, 8, 8), 2, "mlp", width=4)).save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    kept = config.read_text(), weights.read_bytes()
    for content in ("{}", '{"image_shape": [1, 8'):
        config.write_text(content)
        with pytest.raises(ValueError, match=r"config\.json of .* is damaged"):
            LDCVAE.from_pretrained(tmp_path)
    config.write_text(kept[0])
    weights.write_bytes(kept[1][:100])
    with pytest.raises(ValueError, match=r"model\.safetensors of .* is damaged"):
        LDCVAE.from_pretrained(tmp_path)
    weights.write_bytes(kept[1])
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        LDCVAE.from_pretrained(tmp_path)


def test_a_card_is_written_anew_unless_somebody_has_changed_it(tmp_path):
    card, model = tmp_path / "README.md", _own()
    model.save_pretrained(tmp_path, model_card_kwargs={"data": "nine cats", "figures": {"sampler": {"fd": 1.25}}})
    assert 'from_pretrained("FOLDER", encoder=encoder, decoder=decoder)' in card.read_text()
    LDCVAE(LDCVAEConfig((1, 8, 8), 5, "mlp", width=4)).save_pretrained(tmp_path)
    assert "nine cats" not in card.read_text()
    assert "Latents of 5 dimensions" in card.read_text()
    for changed in (card.read_text() + "mine", card.read_text().replace("# LDC", "mine\n# LDC")):
        card.write_text(changed)
        model.save_pretrained(tmp_path)
        assert card.read_text() == changed


def test_the_card_of_functions_claims_no_phase_1(tmp_path):
    model = fit_sampler((lambda x: x.flatten(1)[:, :3], _decode), IMAGES, **SHORT)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "encoder and decoder of another library" in text
    assert "lambda" not in text
