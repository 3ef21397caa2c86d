"""Objectives of the peers against closed forms."""

import math

import pytest
import torch
from torch import nn

from ldcvae.metrics.images import unbiased_mmd2
from ldcvae.objective import elbo_step
from ldcvae.rivals.objectives import RegularisedObjective, VampObjective, WassersteinObjective, imq_mmd2


def networks(d: int = 3, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 2 * d))
    decoder = nn.Sequential(nn.Linear(d, 16), nn.Unflatten(1, (1, 4, 4)))
    return encoder, decoder


def batch(n: int = 7, d: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 4, 4, generator=generator)
    return images, torch.randn(n, 1, d, generator=generator)


def test_imq_mmd2_against_the_sum_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    z, prior = (torch.randn(40, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    z = 0.5 * z + 1.0

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squares = (a[:, None] - b).square().sum(2)
        return sum(6.0 * s / (6.0 * s + squares) for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))

    assert float(imq_mmd2(z, prior)) == pytest.approx(unbiased_mmd2(z, prior, kernel, chunk=40), rel=1e-9)


def test_imq_mmd2_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.stack([imq_mmd2(*torch.randn(2, 20, 4, generator=generator)) for _ in range(2000)])
    assert float(values.mean().abs()) < 4 * float(values.std()) / math.sqrt(2000)


@pytest.mark.parametrize("kind", ["wae", "rae", "vamp"])
def test_gradients_against_finite_differences(kind: str) -> None:
    encoder, decoder = networks()
    images, noise = batch()
    objective = {
        "wae": WassersteinObjective(5.0, 2.0),
        "rae": RegularisedObjective(5.0, 0.3, decay=1e-2),
        "vamp": VampObjective(5.0, images[:3].clone()),
    }[kind]
    network = nn.ModuleDict({"encoder": encoder, "decoder": decoder, "objective": objective})
    objective(encoder, decoder, images, noise)
    # The log variances of a deterministic encoder have no part in anything.
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    generator = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        index = int(torch.randint(parameter.numel(), (), generator=generator))
        values = []
        for step in (5e-3, -5e-3):
            with torch.no_grad():
                parameter.view(-1)[index] += step
            values.append(float(objective(encoder, decoder, images, noise)["loss"]))
            with torch.no_grad():
                parameter.view(-1)[index] -= step
        slope = (values[0] - values[1]) / 1e-2
        assert float(gradients[name].view(-1)[index]) == pytest.approx(slope, rel=0.01, abs=3e-3), name


def test_vampprior_of_one_component_that_is_the_standard_normal_gives_the_elbo() -> None:
    encoder, decoder = networks()
    with torch.no_grad():
        encoder[1].bias.zero_()  # a black pseudo-input is encoded as N(0, I)
    images, _ = batch()
    many = images.repeat(4000, 1, 1, 1)
    noise = torch.randn(len(many), 1, 3, generator=torch.Generator().manual_seed(3))
    objective = VampObjective(5.0, torch.zeros(1, 1, 4, 4))
    with torch.no_grad():
        objective.pixels.fill_(-1e9)
    found = float(objective(encoder, decoder, many, noise)["kl"])
    exact = float(elbo_step(encoder, decoder, images, noise[:7], inverse_temperature=5.0)["kl"])
    assert found == pytest.approx(exact, abs=0.03)  # four standard errors of 28,000 draws


def test_penalties_pull_the_latents_to_the_prior() -> None:
    # With no reconstruction to speak of, the latents of a large batch take on the prior's variance.
    torch.manual_seed(0)
    images = torch.rand(256, 1, 4, 4)
    encoder, decoder = (network.float() for network in networks())
    objective = WassersteinObjective(1e-3, 1e4)
    optimizer = torch.optim.Adam(encoder.parameters(), 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        objective(encoder, decoder, images, torch.randn(256, 1, 3))
        optimizer.step()
    mean = encoder(images).chunk(2, dim=1)[0].detach()
    assert float(mean.mean(0).abs().max()) < 0.15
    torch.testing.assert_close(mean.T.cov(), torch.eye(3), atol=0.25, rtol=0)
