"""Hundreds and thousands of latent dimensions: the sampler's base, and the memory that a process takes for it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from ldcvae import LDCVAE, Encodings, LDCVAEConfig, SamplerSettings
from ldcvae.densities import covariances
from ldcvae.densities.covariances import base_fields, base_note
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World

HEAD = """
import json
import torch
from sklearn.datasets import load_digits
from ldcvae import AutoencoderSettings, Encodings, SamplerSettings, fit, fit_sampler
from ldcvae.encodings import Whitening
from ldcvae.densities import fit_gaussians
torch.set_num_threads(1)
images = torch.from_numpy(load_digits().images[:1294] / 16).float()[:, None]
phase_1 = AutoencoderSettings(epochs=1)
def white(encodings):  # by coordinate: 4096 eigenvectors take most of a minute, and are not what is tested here
    spread = encodings.covariance().diagonal().sqrt()
    return Whitening(encodings.mean.mean(0), torch.diag(1 / spread), torch.diag(spread))
def base_of(model):
    assert model.sample_latents(100).isfinite().all()
    return model.config.base_kind if model.config.base_components else "normal"
"""
TAIL = """
# Not getrusage: its peak is inherited from the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([found, int(peak.split()[1]) / 2**20]))
"""


def measured(code: str) -> tuple[list[str], float]:
    """What the code found, and its process's peak in GiB."""
    command = [sys.executable, "-c", HEAD + code + TAIL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, peak = json.loads(done.stdout)
    return found, peak


@pytest.mark.slow
def test_digits_in_512_dimensions() -> None:
    found, peak = measured(
        "model = fit(images, latent_dim=512, autoencoder=phase_1, sampler=SamplerSettings(steps=5), progress=False)\n"
        "found = [base_of(model)]\n"
    )
    assert found == ["full"]
    assert peak < 3.0  # GiB


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rank"), [("diagonal", 0), ("low_rank", 8)])
def test_mixtures_in_4096_dimensions(kind: str, rank: int) -> None:
    found, peak = measured(
        "g = torch.Generator().manual_seed(0)\n"
        "centres = torch.randn(4, 4096, generator=g)\n"
        "z = centres[torch.randint(4, (1024,), generator=g)] + torch.randn(1024, 4096, generator=g)\n"
        f"p = fit_gaussians(z, 4, kind={kind!r}, rank={rank})\n"
        "draws = p.sample(2000, g)\n"
        "assert torch.cdist(p.means, centres).min(0).values.max() < 5.5\n"  # √(4096 / 256) in the mean
        "assert 0.95 < p.energy(draws).mean() / p.energy(z).mean() < 1.05\n"
        "assert p.score(draws).isfinite().all()\n"
        "found = [p.kind]\n"
    )
    assert found == [kind]
    assert peak < 2.0


@pytest.mark.drill
def test_digits_in_4096_dimensions() -> None:
    found, peak = measured(
        "Encodings.whitening = white\n"
        "model = fit(images, latent_dim=4096, autoencoder=phase_1, sampler=SamplerSettings(steps=5, base='normal'),"
        " progress=False)\n"
        "found = [base_of(model)]\n"
        "found.append(base_of(fit_sampler(model, images, sampler=SamplerSettings(steps=5), progress=False)))\n"
    )
    assert found == ["normal", "low_rank"]
    assert peak < 2.5


def phase(components: int, **changes: str) -> SamplerPhase:
    torch.manual_seed(0)
    settings = SamplerSettings(steps=4, particles=32, width=16, depth=1, base_components=components, **changes)
    base = base_fields(72, components if settings.base == "gmm" else 0)
    model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=72, width=8, sampler_width=16, sampler_depth=1, **base))
    encodings = Encodings(
        torch.randn(300, 72, generator=torch.Generator().manual_seed(0)), torch.full((300, 72), -1.0)
    )
    return SamplerPhase(model, encodings, encodings, settings, World(), seed=0)


def test_the_phase_fits_and_names_the_kind_that_the_model_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covariances, "FULL_DIM", 64)
    first, again = phase(3), phase(3)
    assert first.base_kind == "low_rank"
    assert first.model.base_scales.shape == (3, 72, 18)
    assert torch.equal(first.model.base_scales, again.model.base_scales)
    # The mixture of whitened draws has about their moments, and the untrained net draws it.
    u = first.model.sampler(first.model.draw_base(20_000, torch.Generator().manual_seed(0))).detach()
    torch.testing.assert_close(u.mean(0), torch.zeros(72), atol=0.1, rtol=0)
    torch.testing.assert_close(u.T.cov(), torch.eye(72), atol=0.2, rtol=0)
    assert list(first.blocks(2)) == [2, 4]
    assert phase(3, base="normal").base_kind == "normal"
    config = first.model.config
    note = base_note(config.latent_dim, config.base_components, config.base_kind, config.base_rank)
    assert note.startswith("base of 3 components with low-rank covariances (rank 18), as d = 72 is too much")


@pytest.mark.parametrize("direction", ["score_difference", "drift", "stein"])
def test_copies_among_the_training_images_leave_bandwidths_their_width(direction):
    """Of 20 images 50 times each nearly every draw has another at the same place: a median distance of zero."""
    noise = torch.Generator().manual_seed(0)
    means = torch.randn(20, 4, generator=noise).repeat(50, 1)
    encodings = Encodings(means, torch.full_like(means, -40.0))
    settings = SamplerSettings(direction=direction, base="normal", particles=256, steps=3, width=16, depth=1)
    model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=4, sampler_width=16, sampler_depth=1))
    phase = SamplerPhase(model, encodings, encodings, settings, World(), seed=0)
    for _ in phase.blocks(1):
        assert phase.history[-1]["field_rms"] < float("inf")
    assert model.sample_latents(100, noise).isfinite().all()


def test_auto_is_the_direction_that_is_stable_in_so_many_dimensions():
    for dim, name in ((20, "score_difference"), (21, "drift")):
        encodings = Encodings(torch.randn(64, dim), torch.full((64, dim), -2.0))
        torch.manual_seed(0)
        model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=dim, network="mlp", width=8, base_components=2))
        settings = SamplerSettings(particles=16, base_components=2, steps=2, width=8, depth=1)
        assert SamplerPhase(model, encodings, encodings, settings, World(), 0).direction.name == name
        named = replace(settings, direction="stein")
        assert SamplerPhase(model, encodings, encodings, named, World(), 0).direction.name == "stein"
