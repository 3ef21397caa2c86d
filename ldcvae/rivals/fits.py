"""How each generator is fitted: functions of a `Fitting`, named by the records of `ldcvae.variants.GENERATORS`."""

from dataclasses import replace

import torch
from torch import Tensor

from ldcvae.densities.aggregate import fit_aggregate
from ldcvae.densities.gaussian import Gaussian
from ldcvae.densities.kernel_mixture import KernelMixture
from ldcvae.densities.mcmc import hmc, langevin
from ldcvae.directions.kernels import nearest_neighbour_distance
from ldcvae.model import LDCVAE
from ldcvae.rivals.fitting import Draw, Fitting, TemperedDraw
from ldcvae.rivals.flows import fit_flow_matching, fit_mean_flow
from ldcvae.rivals.generators import Fit, fit_autoregressive_flow, fit_two_stage
from ldcvae.training.base import fit_base
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.settings import SamplerSettings
from ldcvae.training.world import World, seeded_weights

__all__ = [
    "autoregressive_flow",
    "flow_matching",
    "flow_matching_from_base",
    "gaussian",
    "held_out_posterior",
    "hmc_chain",
    "langevin_chain",
    "mean_flow",
    "mixture",
    "own_sampler",
    "posterior",
    "prior",
    "sampler_net",
    "two_stage",
]


def prior(fitting: Fitting) -> TemperedDraw:
    """N(0, I), or the autoencoder's own learnt prior."""
    dim, device, learnt = fitting.dim, fitting.device, fitting.prior
    if learnt is not None:
        return KernelMixture(learnt.mean, learnt.log_variance).sample
    return lambda n, noise, temperature=1.0: temperature * torch.randn(n, dim, generator=noise, device=device)


def gaussian(fitting: Fitting) -> TemperedDraw:
    """One Gaussian with the aggregate posterior's moments."""
    mean = fitting.encodings.mean.mean(0)
    # Factored in float64: of nearly flat encodings float32 keeps no definite covariance.
    return Gaussian(mean.double(), fitting.encodings.exact_covariance()).to(dtype=mean.dtype).sample


def mixture(fitting: Fitting) -> TemperedDraw:
    """A mixture fitted as the sampler net's base is; its setting is the number of components."""
    components = int(fitting.setting) if fitting.setting is not None else fitting.budget.components
    noise = fitting.budget.sampler.posterior_noise
    source, seed = fitting.generator("fit"), fitting.seed
    fitted = fit_aggregate(fitting.encodings, fitting.whitening, components, source, seed, noise=noise)
    return fitting.unwhitened(fitted.to(dtype=fitting.encodings.mean.dtype).sample)


def _gibbs_density(fitting: Fitting) -> KernelMixture:
    """The Gibbs density of the aggregate posterior in whitened coordinates, over all or some of the encodings.

    The setting is the kernels' least width in nearest-neighbour distances; without one they are as they are.
    """
    encodings, whitening, floor = fitting.encodings, fitting.whitening, 0.0
    if fitting.setting is not None:
        draws = encodings.draw(fitting.budget.sampler.particles, fitting.generator("unit"))
        floor = float(fitting.setting * nearest_neighbour_distance(whitening.whiten(draws)))
    order = torch.randperm(len(encodings), generator=fitting.generator("fit"), device=fitting.device)
    kept = order[: fitting.budget.chain_kernels]
    # Whitening turns a diagonal posterior into a full one; its diagonal keeps the kernels cheap.
    variance = encodings.log_variance[kept].exp() @ whitening.matrix.square()
    return KernelMixture(whitening.whiten(encodings.mean[kept]), variance.log(), floor)


def langevin_chain(fitting: Fitting) -> Draw:
    """Annealed Langevin dynamics on the Gibbs density of the encodings."""
    density, steps = _gibbs_density(fitting), fitting.budget.chain_steps
    levels = max(1, steps // 12)
    burn_in = max(1, steps - 10 * levels)
    return fitting.unwhitened(lambda n, noise: langevin(density, n, levels=levels, burn_in=burn_in, generator=noise))


def hmc_chain(fitting: Fitting) -> Draw:
    """Annealed Hamiltonian Monte Carlo on the same density, with a tenth more scores: a trajectory's first."""
    density, (levels, last) = _gibbs_density(fitting), fitting.budget.trajectories

    def draw(n: int, noise: torch.Generator) -> Tensor:
        return hmc(density, n, levels=levels, trajectories=last, leapfrog_steps=10, generator=noise)

    return fitting.unwhitened(draw)


def _fit(fitting: Fitting) -> Fit:
    sampler, noise = fitting.budget.sampler, fitting.generator("fit")
    return Fit(
        lambda n: fitting.whitening.whiten(fitting.encodings.draw(n, noise, sampler.posterior_noise)),
        fitting.dim,
        steps=sampler.steps,
        batch=sampler.particles,
        learning_rate=fitting.setting if fitting.setting is not None else sampler.learning_rate,
        width=sampler.width,
        depth=sampler.depth,
        ema=sampler.ema,
        generator=noise,
    )


def two_stage(fitting: Fitting) -> TemperedDraw:
    """See `fit_two_stage`; the setting of this and the next two is the learning rate."""
    return fitting.unwhitened(fit_two_stage(_fit(fitting)))


def autoregressive_flow(fitting: Fitting) -> TemperedDraw:
    """See `fit_autoregressive_flow`."""
    return fitting.unwhitened(fit_autoregressive_flow(_fit(fitting), fitting.budget.flow_transforms))


def flow_matching(fitting: Fitting) -> TemperedDraw:
    """See `fit_flow_matching`."""
    return fitting.unwhitened(fit_flow_matching(_fit(fitting), fitting.budget.euler_steps))


def _with_own_sampler(fitting: Fitting, sampler: SamplerSettings) -> LDCVAE:
    """The fitting's autoencoder with an untrained sampler net and base of these sizes; the model's own stay."""
    with seeded_weights(fitting.seed):
        return fitting.model.with_new_sampler(sampler.width, sampler.depth, *sampler.base_shape)


def flow_matching_from_base(fitting: Fitting) -> TemperedDraw:
    """See `fit_flow_matching`; paths start at the mixture that is the sampler net's base."""
    sampler = replace(fitting.budget.sampler, base="gmm")
    model = _with_own_sampler(fitting, sampler)
    fit_base(model, fitting.encodings, sampler, fitting.seed)
    return fitting.unwhitened(fit_flow_matching(_fit(fitting), fitting.budget.euler_steps, model.draw_base))


def mean_flow(fitting: Fitting) -> TemperedDraw:
    """See `fit_mean_flow`."""
    return fitting.unwhitened(fit_mean_flow(_fit(fitting)))


def sampler_net(fitting: Fitting) -> TemperedDraw:
    """A sampler net for the model's encodings, trained by the direction that the generator is named after.

    The setting is a factor of the bandwidths. Goes on from the newest of `fitting.kept`. The model's own net stays.
    """
    sampler = fitting.budget.sampler
    model = _with_own_sampler(fitting, sampler)
    factor = fitting.setting if fitting.setting is not None else 1.0
    widths = fitting.budget.bandwidths.get(fitting.name, sampler.bandwidths)
    own = replace(sampler, direction=fitting.name, bandwidths=tuple(factor * width for width in widths))
    held_out = fitting.held_out if fitting.held_out is not None else fitting.encodings
    state = fitting.kept.load() if fitting.kept is not None else None
    if state is not None:
        model.load_state_dict(state["model"])
    world, begun = World(device=fitting.device), state["phase"] if state is not None else None
    phase = SamplerPhase(model, fitting.encodings, held_out, own, world, fitting.seed, state=begun)
    for step in phase.blocks(own.checkpoint_steps):
        if fitting.kept is not None and step < phase.total:
            fitting.kept.save({"model": model.state_dict(), "phase": phase.state()}, step)
    phase.adopt_average()
    fitting.seconds = phase.seconds  # those before a restart too
    return model.sample_latents


def own_sampler(fitting: Fitting) -> TemperedDraw:
    """The sampler net that the model was trained with."""
    return fitting.model.sample_latents


def posterior(fitting: Fitting) -> Draw:
    """The encoder's posteriors themselves: what it has seen, the bound."""
    return fitting.encodings.draw


def held_out_posterior(fitting: Fitting) -> Draw:
    """The posteriors of held-out images: as good as it gets without knowing the training images by heart.

    Raises:
        ValueError: if the fitting has no held-out encodings.
    """
    if fitting.held_out is None:
        raise ValueError("held_out needs encodings of held-out images, Fitting.held_out")
    return fitting.held_out.draw
