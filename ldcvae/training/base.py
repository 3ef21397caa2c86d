"""The coordinates and the base of the sampler net, fitted to encodings once."""

from ldcvae.densities.covariances import draws_to_fit
from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.densities.low_rank import fit_gaussians
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
        seed: of the draws that it is fitted to.

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
    dim, components, kind = encodings.mean.shape[1], settings.base_components, model.config.base_kind
    generator = keyed_generator(encodings.mean.device, seed, "base", 0)
    draws = encodings.draw(draws_to_fit(dim, components, kind), generator, settings.posterior_noise)
    white = model.whitening.whiten(draws)
    del draws
    base = fit_gaussians(white, components, seed, kind=kind, rank=model.config.base_rank)
    if isinstance(base, GaussianMixture):
        model.set_base(base.weights, base.means, base.covariances)
    else:
        model.set_base(base.weights, base.means, base.factors, base.variances)
