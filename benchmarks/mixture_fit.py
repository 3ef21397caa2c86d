"""EM of a Gaussian mixture (ldcvae.densities.em) against scikit-learn's: seconds and likelihood, one thread.

Ours is made of matrix products. The latents are a curved sheet of 6 dimensions in 16 with noise about it: like
encodings, not a few Gaussians.

    python benchmarks/mixture_fit.py [components, 100 if left out]
"""

import sys
import time
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

from ldcvae.densities.kernel_mixture import GaussianMixture

DIM, CURVED = 16, 6


def latents(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n, DIM) draws of a curved sheet of CURVED dimensions with some noise about it."""
    weights = torch.Generator().manual_seed(0)
    first = torch.randn(CURVED, 64, generator=weights) / CURVED**0.5
    second = torch.randn(64, DIM, generator=weights) / 8
    sheet = torch.tanh(2.0 * torch.randn(n, CURVED, generator=generator) @ first) @ second
    return sheet + 0.1 * torch.randn(n, DIM, generator=generator)


def main(arguments: list[str]) -> None:
    components = int(arguments[0]) if arguments else 100
    n = 500 * components  # as many as the sampler's base is fitted to
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    z, held_out = latents(n, generator), latents(20_000, generator)
    GaussianMixture.fit(z[:1000], 2)  # imports
    started = time.perf_counter()
    ours = GaussianMixture.fit(z, components)
    seconds = time.perf_counter() - started
    warnings.simplefilter("ignore", ConvergenceWarning)
    started = time.perf_counter()
    model = SklearnMixture(components, random_state=0).fit(z.double().numpy())
    theirs_seconds = time.perf_counter() - started
    fitted = (model.weights_, model.means_, model.covariances_)
    theirs = GaussianMixture(*(torch.as_tensor(part).float() for part in fitted))
    likelihoods = [-float(mixture.energy(held_out).mean()) for mixture in (ours, theirs)]
    print(f"{components} components, {n:,} rows, d = {DIM}, {model.n_iter_} EM steps")
    print(f"ours {seconds:.1f} s, scikit-learn {theirs_seconds:.1f} s: {theirs_seconds / seconds:.1f} times as fast")
    print(f"held-out log likelihood: {likelihoods[0]:.4f} and {likelihoods[1]:.4f} nats")


if __name__ == "__main__":
    main(sys.argv[1:])
