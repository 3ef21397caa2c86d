"""Where latents may come from: the prior, fits to the encodings, Langevin, the sampler net, the encoder itself."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ldcvae.energy import Gaussian, GaussianMixture, KernelMixture
from ldcvae.latents import Encodings
from ldcvae.mcmc import langevin
from ldcvae.model import LDCVAE
from pipeline.schema import EvaluateConfig

__all__ = ["Draw", "build_generators", "timed_draw"]

# (n, generator) -> (n, d) latents
Draw = Callable[[int, torch.Generator], Tensor]

# Fitting a mixture to more draws than this changes nothing; walking a chain over more kernels takes only longer.
_FIT_DRAWS = 50_000
_LANGEVIN_KERNELS = 4096
_LEAST_SECONDS = 0.1


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
    whitening, d = model.whitening, model.config.latent_dim
    device = encodings.mean.device

    def prior(n: int, noise: torch.Generator) -> Tensor:
        return torch.randn(n, d, generator=noise, device=device)

    def gaussian() -> Draw:
        density = Gaussian(encodings.mean.mean(0), encodings.covariance())
        return lambda n, noise: density.sample(n, noise)

    def gmm() -> Draw:
        draws = whitening.whiten(encodings.draw(min(_FIT_DRAWS, max(10_000, len(encodings))), generator))
        density = GaussianMixture.fit(draws, config.gmm_components, seed=0)
        return lambda n, noise: whitening.unwhiten(density.sample(n, noise))

    def chains() -> Draw:
        kept = torch.randperm(len(encodings), generator=generator, device=device)[:_LANGEVIN_KERNELS]
        mean, log_variance = encodings.mean[kept], encodings.log_variance[kept]
        # Whitening turns a diagonal posterior into a full one; its diagonal keeps the kernels cheap.
        variance = log_variance.exp() @ whitening.matrix.square()
        density = KernelMixture(whitening.whiten(mean), variance.log())
        levels = max(1, config.langevin_steps // 12)
        burn_in = max(1, config.langevin_steps - 10 * levels)

        def draw(n: int, noise: torch.Generator) -> Tensor:
            return whitening.unwhiten(langevin(density, n, levels=levels, burn_in=burn_in, generator=noise))

        return draw

    builders: dict[str, Callable[[], Draw]] = {
        "prior": lambda: prior,
        "gaussian": gaussian,
        "gmm": gmm,
        "langevin": chains,
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
