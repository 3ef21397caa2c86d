"""Encoder objectives against the exact posterior of a linear-Gaussian model."""

import pytest
import torch
from torch import nn

from ldcvae.densities import KernelMixture, StandardNormal
from ldcvae.directions.fields import Step
from ldcvae.directions.stein import stein_direction
from ldcvae.directions.two_sample import drift, score_difference
from ldcvae.losses import reconstruction_loss, split_posterior
from ldcvae.model import LDCVAE, LDCVAEConfig
from ldcvae.objective import elbo_step, svgd_step
from ldcvae.training.settings import SamplerSettings
from ldcvae.variants import DIRECTIONS

PIXELS, DIM, LAMBDA = 16, 2, 60.0


class LinearDecoder(nn.Module):
    """Decoder mean `b + W z` exactly: the loss takes the sigmoid of its logit."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        basis, _ = torch.linalg.qr(torch.randn(PIXELS, DIM, generator=generator))
        # Orthogonal columns make the exact posterior diagonal, so that the encoder's family holds it.
        self.weight = nn.Parameter(basis * torch.tensor([0.10, 0.25]), requires_grad=False)
        self.seen = nn.Parameter(torch.zeros(()))  # something to receive the decoder's gradient

    def mean(self, z):
        return 0.5 + z @ self.weight.T

    def forward(self, z):
        return torch.logit(self.mean(z).clamp(1e-4, 1 - 1e-4)).view(-1, 1, 4, 4) + 0 * self.seen


def exact_posterior(decoder, x):
    """Mean and variance of exp(-lambda |x - b - W z|²) exp(-|z|²/2): precision I + 2 lambda WᵀW."""
    precision = 1.0 + 2.0 * LAMBDA * decoder.weight.square().sum(0)
    return 2.0 * LAMBDA * (x.flatten(1) - 0.5) @ decoder.weight / precision, 1.0 / precision


@pytest.mark.parametrize(("step", "particles"), [(elbo_step, 1), (svgd_step, 4), (svgd_step, 8)])
def test_encoder_recovers_the_posterior_of_a_linear_gaussian_model(step, particles):
    torch.manual_seed(0)
    decoder = LinearDecoder()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2 * DIM))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=5e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    generator = torch.Generator().manual_seed(1)

    def images(n):
        z = torch.randn(n, DIM, generator=generator)
        noise = torch.randn(n, PIXELS, generator=generator) / (2 * LAMBDA) ** 0.5
        return (decoder.mean(z) + noise).view(n, 1, 4, 4).detach()

    for _ in range(1000):
        noise = torch.randn(256, particles, DIM, generator=generator)
        step(encoder, decoder, images(256), noise, inverse_temperature=LAMBDA)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    x = images(500)
    with torch.no_grad():
        posterior = split_posterior(encoder(x))
    mean, variance = exact_posterior(decoder, x)
    error = (posterior.mean - mean).square().mean(0).sqrt() / variance.sqrt()
    assert (error < 0.15).all(), error
    ratio = posterior.log_variance.exp().mean(0) / variance
    assert ((ratio - 1).abs() < 0.05).all(), ratio


def small_model():
    torch.manual_seed(0)
    return LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=3, network="mlp", width=16, depth=1))


def test_elbo_step_has_the_gradient_of_the_bound():
    model, x = small_model(), torch.rand(5, 1, 8, 8)
    noise = torch.randn(5, 2, 3)
    losses = elbo_step(model.encoder, model.decoder, x, noise, inverse_temperature=7.0)
    gradients = [p.grad.clone() for p in (*model.encoder.parameters(), *model.decoder.parameters())]
    model.zero_grad()
    mean, log_variance = model.encode(x)
    z = mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise
    errors = (model.decode(z.flatten(0, 1)).view(5, 2, 1, 8, 8) - x[:, None]).square().sum((2, 3, 4))
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    loss = 7.0 * errors.mean() + kl.mean()
    loss.backward()
    torch.testing.assert_close(losses["loss"], loss.detach())
    for parameter, gradient in zip(
        (*model.encoder.parameters(), *model.decoder.parameters()), gradients, strict=True
    ):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)


def test_svgd_step_gives_the_decoder_the_plain_reconstruction_gradient():
    model, x, noise = small_model(), torch.rand(5, 1, 8, 8), torch.randn(5, 4, 3)
    svgd_step(model.encoder, model.decoder, x, noise, inverse_temperature=7.0)
    got = [p.grad.clone() for p in model.decoder.parameters()]
    model.zero_grad()
    z = model.encode(x).draw(noise).detach()
    logits = model.decoder(z.flatten(0, 1)).view(5, 4, 1, 8, 8)
    (7.0 * reconstruction_loss(logits, x[:, None], "gaussian").mean()).backward()
    for gradient, parameter in zip(got, model.decoder.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("step", [elbo_step, svgd_step])
@pytest.mark.parametrize("consistency", [0.5, 1.0])
def test_consistency_with_the_standard_normal_changes_nothing_in_expectation(step, consistency):
    """Fed back, the energy |z|²/2 is the prior it replaces: SVGD's gradient is the same, the bound's on average."""
    model, x = small_model(), torch.rand(4, 1, 8, 8)
    particles = 4 if step is svgd_step else 4000
    noise = torch.randn(4, particles, 3)
    gradients = []
    for share in (0.0, consistency):
        model.zero_grad()
        score = StandardNormal(3).score
        kwargs = {"inverse_temperature": 1.0, "consistency": share, "latent_score": score}
        step(model.encoder, model.decoder, x, noise, **kwargs)
        gradients.append(torch.cat([p.grad.flatten() for p in model.encoder.parameters()]))
    tolerance = 1e-5 if step is svgd_step else 0.1 * gradients[0].abs().max()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=float(tolerance))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_reconstruction_loss_sums_over_pixels(likelihood):
    logits, x = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    p = torch.sigmoid(logits)
    pixel = (p - x) ** 2 if likelihood == "gaussian" else -(x * p.log() + (1 - x) * (1 - p).log())
    torch.testing.assert_close(reconstruction_loss(logits, x, likelihood), pixel.sum((1, 2, 3)), rtol=1e-4, atol=1e-4)


def test_svgd_needs_two_particles():
    model = small_model()
    with pytest.raises(ValueError, match="M >= 2"):
        svgd_step(model.encoder, model.decoder, torch.rand(2, 1, 8, 8), torch.randn(2, 1, 3), inverse_temperature=1.0)


def test_an_unknown_direction_is_answered_with_the_choices():
    with pytest.raises(ValueError, match="unknown direction 'mmd': choose stein, score_difference, drift"):
        DIRECTIONS.find("mmd")
    with pytest.raises(ValueError, match="direction must be one of auto, stein, score_difference, drift, got 'mmd'"):
        SamplerSettings(direction="mmd")


def test_directions_are_found_by_name_and_follow_their_settings():
    particles, targets = torch.randn(2, 8, 2)
    widths, floor, rows = [torch.tensor(0.5), torch.tensor(1.5)], 0.4, slice(2, 6)

    def found(name, **settings):
        step = Step(particles, targets, widths, floor, SamplerSettings(direction=name, **settings), rows)
        return DIRECTIONS.find(name).field(step)

    for smooth in (False, True):
        expected = score_difference(particles, targets, widths, smooth=smooth, rows=rows)
        torch.testing.assert_close(found("score_difference", smooth=smooth), expected)
    torch.testing.assert_close(found("drift"), drift(particles, targets, widths, rows=rows))
    # Stein needs the score of a latent energy, and makes it of the targets itself.
    score = KernelMixture(targets, floor=floor).score(particles)
    for kernel, self_term in (("rbf", False), ("imq", True)):
        expected = stein_direction(particles, score, widths, kernel, self_term=self_term, normalise=True, rows=rows)
        torch.testing.assert_close(found("stein", kernel=kernel, self_term=self_term), expected)
