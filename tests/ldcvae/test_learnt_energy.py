"""The learnt energy that phase 1 feeds back: of all images or some of a large split, each blind to its own kernel."""

import copy

import pytest
import torch
from torch import nn

from ldcvae import LDCVAE, AutoencoderSettings
from ldcvae.training import autoencoder
from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.world import World

N, DIM = 48, 3
SETTINGS = AutoencoderSettings(
    epochs=3, batch_size=16, particles=2, consistency=0.5, bf16=False, channels_last=False, compile=False
)


@pytest.fixture
def start():
    pixels = torch.randint(0, 256, (N, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def phase(seed=0):
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 2 * DIM))
        decoder = nn.Sequential(nn.Linear(DIM, 16), nn.Unflatten(1, (1, 4, 4)))
        model = LDCVAE.from_networks(encoder, decoder, image_shape=(1, 4, 4), latent_dim=DIM)
        return AutoencoderPhase(model, pixels, pixels[:4], SETTINGS, World(), seed)

    return phase


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(autoencoder, "_MOST_KERNELS", 20)


def test_a_small_split_has_a_kernel_for_every_image(start):
    phase = start()
    next(phase.epochs())
    recent = start()  # the same weights as the phase had when it made its energy
    recent._renew_energy()
    encodings = encode_split(recent.model, recent.feed.images)
    for each in (phase, recent):
        assert each._component is None
        assert torch.equal(each._energy.means, encodings.mean)


def test_of_a_large_split_some_images_have_one(start, few):
    phase = start()
    phase._renew_energy()
    encodings = encode_split(phase.model, phase.feed.images)
    component = phase._component
    (chosen,) = torch.nonzero(component >= 0, as_tuple=True)
    assert sorted(component[chosen].tolist()) == list(range(20)) == list(range(len(phase._energy.means)))
    assert torch.equal(phase._energy.means[component[chosen]], encodings.mean[chosen])
    assert torch.equal(
        phase._energy.variances[component[chosen]], encodings.log_variance[chosen].exp().clamp(min=0.25)
    )


def test_which_ones_depends_on_seed_and_epoch_alone(start, few):
    def chosen(phase):
        phase._renew_energy()
        return phase._component.tolist()

    first, other = start(), start(seed=1)
    assert chosen(first) == chosen(start())
    assert chosen(first) != chosen(other)
    seen = [chosen(first)]
    for _ in first.epochs():
        seen.append(chosen(first))
    assert len({tuple(one) for one in seen}) == 4


def test_each_image_is_blind_to_its_own_kernel_and_sees_all_if_it_has_none(start, few, monkeypatch):
    phase, seen = start(), []
    real = autoencoder.svgd_step

    def step(*networks, latent_score, **options):
        z = torch.randn(16 * 2, DIM, generator=torch.Generator().manual_seed(1))
        seen.append((z, latent_score(z)))
        return real(*networks, latent_score=latent_score, **options)

    monkeypatch.setattr(autoencoder, "svgd_step", step)
    phase._renew_energy()
    phase._losses()
    ((z, score),) = seen
    energy, own = phase._energy, phase._component[phase.batch_indices(0)].tolist()
    assert min(own) == -1 < max(own)
    for row, image in enumerate(i for i in range(16) for _ in range(2)):
        others = [k for k in range(20) if k != own[image]]
        means, variances = energy.means[others].double(), energy.variances[others].double()
        log_joint = -0.5 * ((z[row] - means).square() / variances + variances.log()).sum(1)
        expected = (log_joint.softmax(0)[:, None] * (means - z[row]) / variances).sum(0)
        torch.testing.assert_close(score[row].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_resumed_training_sees_the_same_kernels(start, few):
    whole = start()
    states = []
    for _ in whole.epochs():
        states.append(copy.deepcopy((whole.state(), whole.model.state_dict())))
    resumed = start()
    state, weights = states[0]
    resumed.model.load_state_dict(weights)
    resumed.load(state)
    list(resumed.epochs())
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
