"""Hundreds and thousands of latent dimensions: the memory that a process takes for them."""

import json
import subprocess
import sys

import pytest

HEAD = """
import json, resource, time
import torch
from sklearn.datasets import load_digits
from ldcvae import AutoencoderSettings, Encodings, LDCVAE, LDCVAEConfig, SamplerSettings, fit, fit_sampler
from ldcvae.densities import fit_gaussians
torch.set_num_threads(1)
images = torch.from_numpy(load_digits().images[:1294] / 16).float()[:, None]
phase_1 = AutoencoderSettings(epochs=1)
def base_of(model):
    assert model.sample_latents(100).isfinite().all()
    return model.config.base_kind if model.config.base_components else "normal"
"""
TAIL = """
print(json.dumps([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


def measured(code: str) -> tuple[list[str], float]:
    """What the code found, and its process's peak in GiB."""
    command = [sys.executable, "-c", HEAD + code + TAIL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, peak = json.loads(done.stdout)
    return found, peak


def test_digits_in_512_dimensions() -> None:
    found, peak = measured(
        "model = fit(images, latent_dim=512, autoencoder=phase_1, sampler=SamplerSettings(steps=5), progress=False)\n"
        "found = [base_of(model)]\n"
    )
    assert found == ["low_rank"]
    assert peak < 3.0  # GiB; full covariances took 20


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rank"), [("diagonal", 0), ("low_rank", 8)])
def test_mixtures_in_4096_dimensions(kind: str, rank: int) -> None:
    found, peak = measured(
        "g = torch.Generator().manual_seed(0)\n"
        "centres = torch.randn(4, 4096, generator=g)\n"
        "z = centres[torch.randint(4, (4096,), generator=g)] + torch.randn(4096, 4096, generator=g)\n"
        f"p = fit_gaussians(z, 4, kind={kind!r}, rank={rank})\n"
        "draws = p.sample(2000, g)\n"
        "assert torch.cdist(p.means, centres).min(0).values.max() < 3\n"  # √(4096 / 1024) in the mean
        "assert 0.95 < p.energy(draws).mean() / p.energy(z).mean() < 1.05\n"
        "assert p.score(draws).isfinite().all()\n"
        "found = [p.kind]\n"
    )
    assert found == [kind]
    assert peak < 2.0


@pytest.mark.slow
def test_digits_in_4096_dimensions() -> None:
    found, peak = measured(
        "model = fit(images, latent_dim=4096, autoencoder=phase_1, sampler=SamplerSettings(steps=5, base='normal'),"
        " progress=False)\n"
        "found = [base_of(model)]\n"
        "found.append(base_of(fit_sampler(model, images, sampler=SamplerSettings(steps=5), progress=False)))\n"
    )
    assert found == ["normal", "diagonal"]
    assert peak < 3.5
