"""Where latents may come from: the prior, fits to the encodings, Langevin, the sampler net, the encoder itself."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ldcvae.densities.kernel_mixture import Gaussian, GaussianMixture, KernelMixture
from ldcvae.encodings import Encodings, Whitening
from ldcvae.densities.mcmc import langevin
from ldcvae.model import LDCVAE
from pipeline.config.sections import EvaluateConfig

__all__ = [
    "Draw",
    "build_generators",
    "gaussian_draw",
    "gibbs_density",
    "langevin_draw",
    "mixture_draw",
    "prior_draw",
    "timed_draw",
]

# (n, generator) -> (n, d) latents
Draw = Callable[[int, torch.Generator], Tensor]

# Fitting a mixture to more draws than this changes nothing; walking a chain over more kernels takes only longer.
_FIT_DRAWS = 50_000
_CHAIN_KERNELS = 4096
_LEAST_SECONDS = 0.1


def prior_draw(dim: int, device: torch.device) -> Draw:
    """N(0, I) in `dim` dimensions."""
    return lambda n, noise: torch.randn(n, dim, generator=noise, device=device)


def gaussian_draw(encodings: Encodings) -> Draw:
    """One Gaussian with the aggregate posterior's moments."""
    return Gaussian(encodings.mean.mean(0), encodings.covariance()).sample


def mixture_draw(encodings: Encodings, whitening: Whitening, components: int, generator: torch.Generator) -> Draw:
    """A full-covariance mixture fitted to encoder draws."""
    draws = encodings.draw(min(_FIT_DRAWS, max(10_000, len(encodings))), generator)
    density = GaussianMixture.fit(whitening.whiten(draws), components, seed=0)
    return lambda n, noise: whitening.unwhiten(density.sample(n, noise))


def gibbs_density(
    encodings: Encodings, whitening: Whitening, generator: torch.Generator, floor: float = 0.0
) -> KernelMixture:
    """The Gibbs density of the aggregate posterior in whitened coordinates, over some of the encodings.

    Args:
        encodings: of the training images.
        whitening: of them.
        generator: of the choice.
        floor: least standard deviation of a kernel, in whitened units.
    """
    kept = torch.randperm(len(encodings), generator=generator, device=encodings.mean.device)[:_CHAIN_KERNELS]
    # Whitening turns a diagonal posterior into a full one; its diagonal keeps the kernels cheap.
    variance = encodings.log_variance[kept].exp() @ whitening.matrix.square()
    return KernelMixture(whitening.whiten(encodings.mean[kept]), variance.log(), floor)


def langevin_draw(density: KernelMixture, whitening: Whitening, steps: int) -> Draw:
    """Annealed Langevin dynamics of `steps` steps in all, on a density in whitened coordinates."""
    levels = max(1, steps // 12)
    burn_in = max(1, steps - 10 * levels)
    return lambda n, noise: whitening.unwhiten(langevin(density, n, levels=levels, burn_in=burn_in, generator=noise))


def build_generators(
    model: LDCVAE, encodings: Encodings, config: EvaluateConfig, generator: torch.Generator
) -> dict[str, Draw]:
    """The generators that the config names, each fitted to the training encodings.

    prior: N(0, I). gaussian: one Gaussian with the aggregate posterior's moments. gmm: full-covariance mixture.
    langevin: annealed Langevin on the Gibbs density of the aggregate posterior, a kernel mixture of encodings.
    sampler: the sampler net. encoder: the posterior of a random training image, the bound that no generator is
    expected to beat.

    Args:
        model: the trained model.
        encodings: of the training images.
        config: the `evaluate` section.
        generator: for what the fits draw.
    """
    whitening = model.whitening
    builders: dict[str, Callable[[], Draw]] = {
        "prior": lambda: prior_draw(model.config.latent_dim, encodings.mean.device),
        "gaussian": lambda: gaussian_draw(encodings),
        "gmm": lambda: mixture_draw(encodings, whitening, config.gmm_components, generator),
        "langevin": lambda: langevin_draw(
            gibbs_density(encodings, whitening, generator), whitening, config.langevin_steps
        ),
        "sampler": lambda: model.sample_latents,
        "encoder": lambda: encodings.draw,
    }
    return {name: builders[name]() for name in config.generators}


@torch.no_grad()
def timed_draw(draw: Draw, n: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """(n, d) latents and latents per second; a fast draw is repeated until it can be timed."""

    def seconds() -> float:
        if generator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started = seconds()
    latents = draw(n, generator)
    elapsed, count = seconds() - started, n
    while elapsed < _LEAST_SECONDS:
        draw(n, generator)
        elapsed, count = seconds() - started, count + n
    return latents, count / elapsed
