"""Gaussian mixtures fitted to an aggregate posterior: to the posteriors themselves rather than to draws of them."""

import torch

from ldcvae.densities.covariances import choose_covariances, draws_to_fit
from ldcvae.densities.em import fit_mixture
from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.densities.low_rank import LowRankMixture, fit_gaussians
from ldcvae.encodings import Encodings, Whitening

__all__ = ["fit_aggregate", "fitted_part"]

_ROWS = 100_000  # images that a fit looks at, or 500 a component; a step of EM takes as long as there are rows


def fit_aggregate(
    encodings: Encodings,
    whitening: Whitening,
    components: int,
    generator: torch.Generator,
    seed: int = 0,
    *,
    noise: float = 1.0,
    kind: str | None = None,
    rank: int = 0,
) -> GaussianMixture | LowRankMixture:
    """A Gaussian mixture of an aggregate posterior, in whitened coordinates.

    Full covariances are fitted to the posteriors' means and variances (`ldcvae.densities.em.fit_mixture`): a mixture
    of many numbers that is fitted to a draw or two of each image fits those draws, and not their law.
    Each channel is scaled to variance one for it, in which posteriors stay diagonal, and the mixture is whitened.
    Other kinds are fitted to draws (`draws_to_fit`).

    Args:
        encodings: of the training images.
        whitening: of the encodings.
        components: the number K of components.
        generator: of the images or draws that the fit looks at, on the device of the encodings.
        seed: of the k-means start.
        noise: share of the posteriors' standard deviation.
        kind: full, low_rank or diagonal; None: what `choose_covariances` says for d and K.
        rank: of kind low_rank where `kind` is given.

    Returns:
        The mixture, in float64 where covariances are full: those of nearly flat latents are definite in it alone.

    Raises:
        ValueError: with fewer images than components, or a rank out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> encodings = Encodings(torch.randn(200, 2, generator=generator) * 3, torch.zeros(200, 2))
        >>> mixture = fit_aggregate(encodings, encodings.whitening(), 1, generator)
        >>> bool((mixture.covariances[0] - torch.eye(2)).abs().max() < 0.02), mixture.covariances.dtype
        (True, torch.float64)
    """
    n, dim = encodings.mean.shape
    if kind is None:
        kind, rank = choose_covariances(dim, components)
    if n < max(2, components):
        raise ValueError(f"a mixture of {components:,} components needs as many images, got {n:,}")
    if kind != "full":
        draws = encodings.draw(draws_to_fit(dim, components), generator, noise)
        return fit_gaussians(whitening.whiten(draws), components, seed, kind=kind, rank=rank)
    encodings = fitted_part(encodings, components, generator)
    scale = encodings.covariance().diagonal().clamp(min=torch.finfo(encodings.mean.dtype).tiny).sqrt()
    variances = (noise / scale * torch.exp(0.5 * encodings.log_variance)).square()
    scaled, variances = (encodings.mean / scale).double(), variances.double()
    # No more than the posteriors' own variances: whitened, the flattest directions would be as wide as what EM adds.
    ridge = min(1e-6, float(variances.mean(0).min()))
    weights, means, covariances = fit_mixture(scaled, components, seed, variances=variances, ridge=ridge)
    matrix = scale.double()[:, None] * whitening.matrix.double()
    means = means @ matrix - (whitening.mean.double() @ whitening.matrix.double())
    covariances = matrix.T @ covariances @ matrix
    return GaussianMixture(weights, means, 0.5 * (covariances + covariances.mT))


def fitted_part(encodings: Encodings, components: int, generator: torch.Generator) -> Encodings:
    """The posteriors that a fit of so many components looks at: all, or a random choice of more than 100,000.

    Example:
        >>> len(fitted_part(Encodings(torch.zeros(9, 2), torch.zeros(9, 2)), 3, torch.Generator()))
        9
    """
    limit = max(_ROWS, 500 * components)
    if len(encodings) <= limit:
        return encodings
    rows = torch.randperm(len(encodings), generator=generator, device=encodings.mean.device)[:limit]
    return Encodings(encodings.mean[rows], encodings.log_variance[rows])
