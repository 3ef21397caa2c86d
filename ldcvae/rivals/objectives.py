"""Objectives of the autoencoders that LDC-VAE is compared with, on the same networks.

Each is called as a training step, `objective(encoder, decoder, images, noise) -> losses`, and runs the backward pass
itself, like the steps of `ldcvae.objective`. In all of them the reconstruction loss `l(x, z)` is weighted by lambda,
so that one lambda means the same everywhere. A VAE is `elbo_step` with one particle; a beta-VAE the same with lambda
divided by beta, which Adam cannot tell from a KL multiplied by it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldcvae.densities.gaussian import LOG_2PI
from ldcvae.directions.kernels import squared_distances
from ldcvae.encodings import Posterior
from ldcvae.losses import reconstruction_loss, split_posterior

__all__ = ["RegularisedObjective", "VampObjective", "WassersteinObjective", "imq_mmd2"]

# Widths of the sum of inverse multiquadrics, in units of the prior's mean squared distance (Tolstikhin et al. 2018).
_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

# Adam moves every weight by about the learning rate a step, wherever it is: a pixel's logit would stay near its start
# for a whole training. Held this many times smaller, pseudo-inputs are learnt (docs/experiments.md).
_GAIN = 30.0


def imq_mmd2(z: Tensor, prior: Tensor) -> Tensor:
    """Unbiased MMD² of latents to prior draws under `Σ_s C_s / (C_s + |z - z'|²)`, `C_s = 2 d s`.

    Args:
        z: (n, d) latents, attached to the encoder.
        prior: (n, d) draws of N(0, I).

    Returns:
        0-d tensor, differentiable; zero in expectation when the laws agree.

    Raises:
        ValueError: with fewer than two rows.

    References:
        Tolstikhin et al. 2018, Wasserstein auto-encoders, 1711.01558, algorithm 2 and section 4.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> z, prior = (torch.randn(300, 2, generator=generator) for _ in range(2))
        >>> bool(imq_mmd2(z, prior).abs() < 0.05), bool(imq_mmd2(z + 3, prior) > 1)
        (True, True)
    """
    n, dim = z.shape
    if n < 2:
        raise ValueError(f"imq_mmd2 needs at least 2 latents, got {n}: a batch of WAE has two images or more")
    total = z.new_zeros(())
    for a, b, weight in ((z, z, 1.0), (prior, prior, 1.0), (z, prior, -2.0)):
        squares = squared_distances(a, b)
        same = a is b
        for scale in _SCALES:
            value = 2.0 * dim * scale / (2.0 * dim * scale + squares)
            pairs = n * (n - 1) if same else n * n
            total = total + weight * (value.sum() - (value.diagonal().sum() if same else 0.0)) / pairs
    return total


def _reconstruction(decoder: nn.Module, latents: Tensor, images: Tensor, likelihood: str) -> Tensor:
    return reconstruction_loss(decoder(latents).float(), images, likelihood).mean()


class WassersteinObjective(nn.Module):
    """WAE-MMD: `lambda (mean l + weight · MMD²(q(z), N(0, I)))`, deterministic encoder (1711.01558, algorithm 2).

    Args:
        inverse_temperature: lambda.
        weight: of the penalty, relative to the reconstruction loss summed over pixels.
        likelihood: see `reconstruction_loss`.

    Example:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        >>> decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
        >>> step = WassersteinObjective(40.0, 10.0)
        >>> sorted(step(encoder, decoder, torch.rand(5, 1, 8, 8), torch.randn(5, 1, 4)))
        ['loss', 'penalty', 'reconstruction']
    """

    deterministic = True

    def __init__(self, inverse_temperature: float, weight: float, likelihood: str = "gaussian"):
        super().__init__()
        self.inverse_temperature, self.weight, self.likelihood = inverse_temperature, weight, likelihood

    def forward(self, encoder: nn.Module, decoder: nn.Module, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Gradients of one batch; `noise` (B, 1, d) are the draws of the prior. Detached means."""
        latents = split_posterior(encoder(images)).mean
        reconstruction = _reconstruction(decoder, latents, images, self.likelihood)
        penalty = imq_mmd2(latents, noise[:, 0])
        loss = self.inverse_temperature * (reconstruction + self.weight * penalty)
        loss.backward()
        return {"loss": loss.detach(), "reconstruction": reconstruction.detach(), "penalty": penalty.detach()}


class RegularisedObjective(nn.Module):
    """RAE-L2: `lambda (mean l + decay · |θ_D|²) + weight · mean |z|²/2`, deterministic (1903.12436, eq. 9 to 11).

    Args:
        inverse_temperature: lambda.
        weight: of half the squared norm of the latents; 1 is what the KL of a VAE would ask of its means.
        likelihood: see `reconstruction_loss`.
        decay: of the decoder's squared weights, relative to the reconstruction loss.

    Example:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        >>> decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
        >>> sorted(RegularisedObjective(40.0, 0.1)(encoder, decoder, torch.rand(5, 1, 8, 8), torch.randn(5, 1, 4)))
        ['loss', 'penalty', 'reconstruction']
    """

    deterministic = True

    def __init__(self, inverse_temperature: float, weight: float, likelihood: str = "gaussian", decay: float = 1e-6):
        super().__init__()
        self.inverse_temperature, self.weight = inverse_temperature, weight
        self.likelihood, self.decay = likelihood, decay

    def forward(self, encoder: nn.Module, decoder: nn.Module, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Gradients of one batch; `noise` is not used. Detached means."""
        latents = split_posterior(encoder(images)).mean
        reconstruction = _reconstruction(decoder, latents, images, self.likelihood)
        penalty = 0.5 * latents.square().sum(1).mean()
        norm = torch.stack([weight.square().sum() for weight in decoder.parameters()]).sum()
        loss = self.inverse_temperature * (reconstruction + self.decay * norm) + self.weight * penalty
        loss.backward()
        return {"loss": loss.detach(), "reconstruction": reconstruction.detach(), "penalty": penalty.detach()}


class VampObjective(nn.Module):
    """VampPrior VAE: `lambda E_q l + KL(q(z | x) || p)`, `p(z) = 1/K Σ q(z | uₖ)` with learnt pseudo-inputs uₖ.

    The entropy of q is in closed form, the cross term `-E_q log p` from the step's one draw (1705.07120, eq. 9).

    Args:
        inverse_temperature: lambda.
        pseudo_inputs: (K, C, H, W) images in [0, 1] to start from, e.g. K training images.
        likelihood: see `reconstruction_loss`.

    Example:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        >>> decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
        >>> step = VampObjective(40.0, torch.rand(3, 1, 8, 8))
        >>> sorted(step(encoder, decoder, torch.rand(5, 1, 8, 8), torch.randn(5, 1, 4)))
        ['kl', 'loss', 'reconstruction']
        >>> step.prior(encoder).mean.shape
        torch.Size([3, 4])
    """

    deterministic = False

    def __init__(self, inverse_temperature: float, pseudo_inputs: Tensor, likelihood: str = "gaussian"):
        super().__init__()
        self.inverse_temperature, self.likelihood = inverse_temperature, likelihood
        # Kept in [0, 1] by a sigmoid; images have exact zeros and ones, whose logits are infinite.
        self.pixels = nn.Parameter(torch.logit(pseudo_inputs.clamp(0.01, 0.99)) / _GAIN)

    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs as they are now, (K, C, H, W) in [0, 1]."""
        return torch.sigmoid(_GAIN * self.pixels)

    def prior(self, encoder: nn.Module) -> Posterior:
        """The components of the prior: posteriors of the pseudo-inputs, (K, d) each, equal weights."""
        return split_posterior(encoder(self.pseudo_inputs()))

    def forward(self, encoder: nn.Module, decoder: nn.Module, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Gradients of one batch; `noise` (B, 1, d) standard normal. Detached means."""
        both = split_posterior(encoder(torch.cat([images, self.pseudo_inputs()])))
        posterior, prior = (Posterior(*(part[rows] for part in both)) for rows in _split(len(images)))
        latents = posterior.draw(noise[:, 0])
        reconstruction = _reconstruction(decoder, latents, images, self.likelihood)
        # (B, K, d) differences: K is some hundred, and sharp components would lose their digits in matmul form.
        scaled = (latents[:, None] - prior.mean) * torch.exp(-0.5 * prior.log_variance)
        log_components = -0.5 * (scaled.square() + prior.log_variance + LOG_2PI).sum(2)
        log_prior = log_components.logsumexp(1) - math.log(len(self.pixels))
        entropy = 0.5 * (1.0 + LOG_2PI + posterior.log_variance).sum(1)
        kl = (-log_prior - entropy).mean()
        loss = self.inverse_temperature * reconstruction + kl
        loss.backward()
        return {"loss": loss.detach(), "reconstruction": reconstruction.detach(), "kl": kl.detach()}


SomeImages = Callable[[int], Tensor]


def wasserstein(inverse_temperature: float, setting: float, likelihood: str, some: SomeImages) -> nn.Module:
    """`WassersteinObjective` for its record in `ldcvae.variants.AUTOENCODERS`."""
    return WassersteinObjective(inverse_temperature, setting, likelihood)


def regularised(inverse_temperature: float, setting: float, likelihood: str, some: SomeImages) -> nn.Module:
    """`RegularisedObjective`, likewise."""
    return RegularisedObjective(inverse_temperature, setting, likelihood)


def vamp(inverse_temperature: float, setting: float, likelihood: str, some: SomeImages) -> nn.Module:
    """`VampObjective` that starts from training images, likewise."""
    return VampObjective(inverse_temperature, some(int(setting)), likelihood)


def _split(batch: int) -> tuple[slice, slice]:
    return slice(0, batch), slice(batch, None)
