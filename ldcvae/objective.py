"""What one training step computes: a batch in, gradients on the networks and named losses out.

Both encoder objectives approximate the Gibbs posterior `pi(z | x) ∝ exp(-lambda l(x, z)) exp(-E₀(z))`,
`E₀ = |z|²/2`: `elbo_step` by the reparametrised evidence bound, `svgd_step` by letting the encoder follow the
Stein direction of M particles per image. Each runs the backward pass itself, because SVGD needs the gradient of
the reconstruction loss at the latents in the middle of it: one decoder pass serves the decoder and the score.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldcvae.directions.stein import amortised_loss, particle_direction
from ldcvae.encodings import Posterior
from ldcvae.losses import gaussian_kl, reconstruction_loss, split_posterior

__all__ = ["elbo_step", "svgd_step"]

Score = Callable[[Tensor], Tensor]


def _decode_loss(decoder: nn.Module, latents: Tensor, images: Tensor, likelihood: str) -> Tensor:
    """(B, M) reconstruction losses of latents (B, M, d) in one decoder pass."""
    batch, particles = latents.shape[:2]
    logits = decoder(latents.flatten(0, 1)).float().unflatten(0, (batch, particles))
    return reconstruction_loss(logits, images.unsqueeze(1), likelihood)


def elbo_step(
    encoder: nn.Module,
    decoder: nn.Module,
    images: Tensor,
    noise: Tensor,
    *,
    inverse_temperature: float,
    likelihood: str = "gaussian",
    consistency: float = 0.0,
    latent_score: Score | None = None,
) -> dict[str, Tensor]:
    """Gradients of `mean_x [lambda E_q l(x, z) + KL(q(z | x) || p)]` (Kingma & Welling 2013, 1312.6114).

    Args:
        encoder: (B, C, H, W) -> (B, 2d).
        decoder: (B, d) -> logits (B, C, H, W).
        images: (B, C, H, W) in [0, 1].
        noise: (B, M, d) standard normal.
        inverse_temperature: lambda.
        likelihood: see `reconstruction_loss`.
        consistency: c in [0, 1]; the prior energy is `(1 - c)|z|²/2 + c E(z)` with E the learnt latent energy.
        latent_score: `z (n, d) -> -∇E(z)`; None, as before there is such an energy: c counts as 0.

    Returns:
        Detached 0-d means over the batch: loss, reconstruction (per image), kl.

    Example:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        >>> decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
        >>> images, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 4)
        >>> losses = elbo_step(encoder, decoder, images, noise, inverse_temperature=1.0)
        >>> sorted(losses)
        ['kl', 'loss', 'reconstruction']
    """
    posterior = split_posterior(encoder(images))
    latents = posterior.draw(noise)
    reconstruction = _decode_loss(decoder, latents, images, likelihood).mean()
    kl = gaussian_kl(posterior).mean()
    prior = kl
    if consistency and latent_score is not None:
        # KL from exp(-E) is -entropy + E_q[E]; the entropy is closed form, E enters through its score alone.
        entropy = 0.5 * posterior.log_variance.sum(1).mean()
        flat = latents.flatten(0, 1)
        learnt = amortised_loss(flat, latent_score(flat.detach())) - entropy
        prior = (1.0 - consistency) * kl + consistency * learnt
    loss = inverse_temperature * reconstruction + prior
    loss.backward()
    return {"loss": loss.detach(), "reconstruction": reconstruction.detach(), "kl": kl.detach()}


def svgd_step(
    encoder: nn.Module,
    decoder: nn.Module,
    images: Tensor,
    noise: Tensor,
    *,
    inverse_temperature: float,
    likelihood: str = "gaussian",
    consistency: float = 0.0,
    latent_score: Score | None = None,
) -> dict[str, Tensor]:
    """Amortised SVGD of the encoder: its M draws per image follow the Stein direction of the Gibbs posterior.

    The decoder's backward pass gives `∇_z l` on the way, hence the score `-lambda ∇_z l(x, z) - z`; the encoder
    receives `-φ / (B M)` as the gradient at its draws (arXiv 2109.10640; amortised SVGD 1707.06626).

    Args:
        noise: (B, M, d) standard normal, M >= 2; the other arguments are those of `elbo_step`.

    Returns:
        Detached 0-d means: loss (lambda · reconstruction + kl, for comparison with `elbo_step`; SVGD itself
        has no loss value), reconstruction, kl, stein (RMS of the direction, small when the particles have settled).

    Raises:
        ValueError: if M < 2.

    Example:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        >>> decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
        >>> images, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 3, 4)
        >>> losses = svgd_step(encoder, decoder, images, noise, inverse_temperature=1.0)
        >>> bool(encoder[1].weight.grad.abs().sum() > 0)
        True
    """
    if latent_score is None:
        consistency = 0.0
    posterior = split_posterior(encoder(images))
    latents = posterior.draw(noise)
    leaf = latents.detach().requires_grad_()
    pairs = leaf.shape[0] * leaf.shape[1]
    reconstruction = _decode_loss(decoder, leaf, images, likelihood).mean()
    (inverse_temperature * reconstruction).backward()
    particles = leaf.detach()
    assert leaf.grad is not None
    score = -pairs * leaf.grad - (1.0 - consistency) * particles
    if consistency and latent_score is not None:
        score += consistency * latent_score(particles.flatten(0, 1)).view_as(particles)
    direction = particle_direction(particles, score, posterior.log_variance.detach().exp())
    latents.backward(gradient=-direction / pairs)
    with torch.no_grad():
        kl = gaussian_kl(Posterior(posterior.mean.detach(), posterior.log_variance.detach())).mean()
        loss = inverse_temperature * reconstruction.detach() + kl
    stein = direction.square().mean().sqrt()
    return {"loss": loss, "reconstruction": reconstruction.detach(), "kl": kl, "stein": stein}
