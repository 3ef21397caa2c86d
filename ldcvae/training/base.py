"""The coordinates and the base of the sampler net, fitted to encodings once."""

from ldcvae.densities.aggregate import fit_aggregate, fitted_part
from ldcvae.densities.centres import split_components
from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.encodings import Encodings
from ldcvae.model import LDCVAE
from ldcvae.training.settings import SamplerSettings
from ldcvae.training.world import keyed_generator

__all__ = ["fit_base"]


def fit_base(model: LDCVAE, encodings: Encodings, settings: SamplerSettings | None, seed: int) -> None:
    """Whitening of the encodings, and the base mixture in whitened coordinates, where `settings.base` wants one.

    Args:
        model: on the device of the encodings; its buffers are set.
        encodings: of the training images.
        settings: of phase 2, None for the whitening alone; the model's configuration knows a mixture's covariances.
        seed: of the fit's start, and of the draws where it is fitted to draws.

    Example:
        >>> import torch
        >>> from ldcvae import LDCVAEConfig
        >>> model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=2, base_components=3))
        >>> encodings = Encodings(torch.randn(100, 2) * 3, torch.full((100, 2), -4.0))
        >>> fit_base(model, encodings, SamplerSettings(base_components=3), seed=0)
        >>> model.draw_base(5).shape
        torch.Size([5, 2])
    """
    model.set_whitening(encodings.whitening())
    if settings is None or settings.base != "gmm":
        return
    generator = keyed_generator(encodings.mean.device, seed, "base", 0)
    base = fit_aggregate(
        encodings,
        model.whitening,
        settings.base_components,
        generator,
        seed,
        noise=settings.posterior_noise,
        kind=model.config.base_kind,
        rank=model.config.base_rank,
    )
    scale = settings.base_spread**2  # of variances
    if isinstance(base, GaussianMixture):
        if settings.base_centres == 1:
            model.set_base(base.weights, base.means, scale * base.covariances)
            return
        part = fitted_part(encodings, settings.base_components, generator)
        variances = settings.posterior_noise**2 * part.log_variance.exp()
        means, matrix = model.whitening.whiten(part.mean), model.whitening.matrix
        centres = split_components(base, means, variances, matrix, settings.base_centres, seed)
        model.set_base(centres.weights, centres.means, scale * centres.covariances)
    else:
        model.set_base(base.weights, base.means, settings.base_spread * base.factors, scale * base.variances)
