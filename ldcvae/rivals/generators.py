"""Peers of the sampler net: models fitted to encoder draws after the autoencoder is trained.

All work in whitened coordinates, with networks of the sampler net's size, its number of steps and its optimizer:
a normalising flow (zuko's masked autoregressive flow) and the second VAE of a two-stage VAE here, flow matching and
MeanFlow in `ldcvae.rivals.flows`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldcvae.losses import gaussian_kl, split_posterior
from ldcvae.networks import residual_mlp
from ldcvae.rivals.fitting import TemperedDraw
from ldcvae.training.phase import running_average
from ldcvae.training.world import seeded_weights

__all__ = ["Fit", "fit_autoregressive_flow", "fit_two_stage"]


class Fit:
    """How a latent model is trained; shared by all of them.

    Args:
        draw: `n -> (n, d)` whitened encoder draws, fresh at every call.
        dim: d.
        steps: updates.
        batch: draws per update.
        learning_rate: Adam's peak rate, cosine to zero.
        width: hidden units.
        depth: residual layers.
        ema: decay of the averaged weights.
        generator: of all noise, on the draws' device.
    """

    def __init__(
        self,
        draw: Callable[[int], Tensor],
        dim: int,
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        width: int,
        depth: int,
        ema: float = 0.995,
        generator: torch.Generator,
    ):
        self.draw, self.dim, self.steps, self.batch = draw, dim, steps, batch
        self.learning_rate, self.width, self.depth, self.ema = learning_rate, width, depth, ema
        self.generator = generator

    def noise(self, *shape: int) -> Tensor:
        """Standard normal noise."""
        return torch.randn(*shape, generator=self.generator, device=self.generator.device)

    def build(self, network: Callable[[], nn.Module]) -> nn.Module:
        """A network with initial weights that the generator's seed fixes."""
        with seeded_weights(self.generator.initial_seed()):
            return network().to(self.generator.device)

    def run(self, network: nn.Module, loss: Callable[[Tensor], Tensor]) -> nn.Module:
        """Minimise `loss(draws)` over the network's weights; the averaged network, without gradients.

        Raises:
            FloatingPointError: if weights are not finite at the end.
        """
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        average = running_average(network, self.ema, lambda: schedule.last_epoch)
        for _ in range(self.steps):
            value = loss(self.draw(self.batch))
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
        if not all(bool(weight.isfinite().all()) for weight in average.parameters()):
            raise FloatingPointError("the weights are not finite; try a lower learning rate")
        return average.module


def fit_autoregressive_flow(fit: Fit, transforms: int = 5) -> TemperedDraw:
    """Masked autoregressive flow by maximum likelihood (Papamakarios et al. 2017, 1705.07057), zuko's.

    Args:
        fit: how to train; `width` and `depth` are the hidden layers of each transform.
        transforms: how many.

    Returns:
        A sampler: d passes through each transform.

    Raises:
        ImportError: if zuko is not installed.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> fit = Fit(lambda n: 0.5 * torch.randn(n, 2, generator=generator), 2, steps=200, batch=128,
        ...           learning_rate=5e-3, width=16, depth=1, generator=generator)
        >>> bool((fit_autoregressive_flow(fit, transforms=1)(2000, generator).std(0) - 0.5).abs().max() < 0.1)
        True
    """
    import zuko  # optional: only comparisons need it

    network = fit.build(
        lambda: zuko.flows.MAF(fit.dim, 0, transforms=transforms, hidden_features=(fit.width,) * fit.depth)
    )
    flow = fit.run(network, lambda u: -network().log_prob(u).mean())

    @torch.no_grad()
    def draw(n: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        noise = torch.randn(n, fit.dim, generator=generator, device=generator.device)
        return flow().transform.inv(temperature * noise)

    return draw


class _SecondStage(nn.Module):
    """Encoder, decoder and the learnt noise level of the second VAE."""

    def __init__(self, dim: int, width: int, depth: int):
        super().__init__()
        self.encoder = residual_mlp(dim, 2 * dim, width, depth)
        self.decoder = residual_mlp(dim, dim, width, depth)
        self.log_gamma = nn.Parameter(torch.zeros(()))


def fit_two_stage(fit: Fit) -> TemperedDraw:
    """The second VAE of a two-stage VAE: latents of the latents, of the same dimension (1903.05789, section 4).

    Gaussian likelihood `N(u; D(v), γ² I)` with γ learnt; draws are `D(v) + γ ε`, v ~ N(0, I).

    Args:
        fit: how to train; width and depth are those of encoder and decoder each.

    Returns:
        A sampler: one pass.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> fit = Fit(lambda n: 3 + torch.randn(n, 2, generator=generator), 2, steps=300, batch=128,
        ...           learning_rate=5e-3, width=32, depth=1, generator=generator)
        >>> bool((fit_two_stage(fit)(2000, generator).mean(0) - 3).abs().max() < 0.2)
        True
    """
    network = fit.build(lambda: _SecondStage(fit.dim, fit.width, fit.depth))
    assert isinstance(network, _SecondStage)

    def loss(u: Tensor) -> Tensor:
        posterior = split_posterior(network.encoder(u))
        v, kl = posterior.draw(fit.noise(*u.shape)), gaussian_kl(posterior)
        # A floor, as the bound grows without limit where the latents lie on less than d dimensions.
        log_gamma = network.log_gamma.clamp(min=-5.0)
        error = 0.5 * ((u - network.decoder(v)) * torch.exp(-log_gamma)).square().sum(1) + fit.dim * log_gamma
        return (error + kl).mean()

    second = fit.run(network, loss)
    assert isinstance(second, _SecondStage)

    @torch.no_grad()
    def draw(n: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        v, noise = temperature * torch.randn(2, n, fit.dim, generator=generator, device=generator.device)
        return second.decoder(v) + second.log_gamma.clamp(min=-5.0).exp() * noise

    return draw
