"""EM of a Gaussian mixture: against scikit-learn's, and truncated steps against plain ones; one thread.

Seconds and held-out likelihood. Ours (ldcvae.densities.em) is made of matrix products. The latents are a curved sheet
of 6 dimensions with noise about it: like encodings, not a few Gaussians. For the second comparison they are 54,000
posteriors in 64 dimensions, of which the sheet fills some and the prior others, as in a VAE with too many.

    OMP_NUM_THREADS=1 python benchmarks/mixture_fit.py [components, 100 if left out]
    OMP_NUM_THREADS=1 python benchmarks/mixture_fit.py --before CHECKOUT    # against an earlier commit's fit to draws
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from bare import report
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

from ldcvae.densities import truncated_em
from ldcvae.densities.aggregate import fit_aggregate
from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.encodings import Encodings

DIM, CURVED = 16, 6


def latents(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n, DIM) draws of a curved sheet of CURVED dimensions with some noise about it."""
    weights = torch.Generator().manual_seed(0)
    first = torch.randn(CURVED, 64, generator=weights) / CURVED**0.5
    second = torch.randn(64, DIM, generator=weights) / 8
    sheet = torch.tanh(2.0 * torch.randn(n, CURVED, generator=generator) @ first) @ second
    return sheet + 0.1 * torch.randn(n, DIM, generator=generator)


def posteriors(n: int, generator: torch.Generator, dim: int = 64) -> Encodings:
    """Posteriors whose means lie on the sheet, and whose last third of channels knows next to nothing."""
    sheet = torch.cat([latents(n, generator) for _ in range(dim // DIM)], 1)
    known = torch.linspace(1.0, 0.0, dim).sub(0.3).clamp(min=0.02)
    spread = (1.0 - known).clamp(min=0.1) * (0.8 + 0.4 * torch.rand(n, dim, generator=generator))
    return Encodings(known * sheet / sheet.std(0), 2.0 * spread.log())


def encoded() -> tuple[Encodings, torch.Tensor, torch.Generator]:
    """Posteriors to fit to, whitened draws of others to judge by, and the generator that goes on from there."""
    generator = torch.Generator().manual_seed(1)
    train, held_out = posteriors(54_000, generator), posteriors(6_000, generator)
    return train, train.whitening().whiten(held_out.draw(20_000, generator)), generator


def on_posteriors(components: int) -> None:
    """By plain EM and by truncated steps, from k-means each."""
    train, fresh, generator = encoded()
    whitening = train.whitening()
    seconds, likelihoods, pays = {}, {}, truncated_em.pays
    for name, chosen in {"plain": lambda dim, components: False, "truncated": pays}.items():
        truncated_em.pays = chosen
        started = time.perf_counter()
        mixture = fit_aggregate(train, whitening, components, generator, kind="full")
        seconds[name] = time.perf_counter() - started
        likelihoods[name] = -float(mixture.energy(fresh).mean())
    truncated_em.pays = pays
    dim, ratio = fresh.shape[1], seconds["plain"] / seconds["truncated"]
    print(f"{components} components, {len(train):,} posteriors, d = {dim}")
    print(f"plain {seconds['plain']:.1f} s, truncated {seconds['truncated']:.1f} s: {ratio:.1f} times as fast")
    print(f"held-out log likelihood: {likelihoods['plain']:.4f} and {likelihoods['truncated']:.4f} nats")
    report(f"plain EM / truncated EM, seconds, K = {components}, d = {dim}", ratio, "higher")


# Where the module lies is looked up, not tried by importing: modules that the checkout lacks would come from today's
# tree by an editable install's finder, and today's fit would be measured against itself.
BEFORE = """
import importlib, pathlib, sys, time, torch
torch.set_num_threads(1)
there = pathlib.Path("ldcvae/densities/gaussian.py").exists()
module = importlib.import_module("ldcvae.densities.gaussian" if there else "ldcvae.gaussian")  # until November 24
assert pathlib.Path(module.__file__).is_relative_to(pathlib.Path.cwd()), module.__file__
z, fresh = torch.load(sys.argv[1], weights_only=True)
started = time.perf_counter()
mixture = module.GaussianMixture.fit(z, int(sys.argv[2]))
print(time.perf_counter() - started, -float(mixture.energy(fresh).mean()))
"""


def against_before(checkout: str, components: int) -> None:
    """Today's fit to posteriors, and what a checkout makes of 500 draws a component, in a process of its own."""
    train, fresh, generator = encoded()
    whitening = train.whitening()
    started = time.perf_counter()
    mixture = fit_aggregate(train, whitening, components, generator, kind="full")
    seconds, likelihood = time.perf_counter() - started, -float(mixture.energy(fresh).mean())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "draws.pt"
        torch.save((whitening.whiten(train.draw(500 * components, generator)), fresh), file)
        command = [sys.executable, "-c", BEFORE, str(file), str(components)]
        environment = os.environ | {"PYTHONPATH": checkout}
        found = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    before, theirs = map(float, found.stdout.split())
    print(f"{components} components, d = {fresh.shape[1]}: {seconds:.1f} s, before {before:.1f} s")
    print(f"{before / seconds:.1f} times as fast")
    print(f"held-out log likelihood: {likelihood:.2f} and {theirs:.2f} nats")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("components", type=int, nargs="?", default=100)
    parser.add_argument("--before", metavar="CHECKOUT", help="folder of an earlier commit")
    options = parser.parse_args(arguments)
    components = options.components
    if options.before is not None:
        torch.set_num_threads(1)
        return against_before(options.before, components)
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
    report(f"scikit-learn's EM / ours, seconds, K = {components}, d = {DIM}", theirs_seconds / seconds, "higher")
    on_posteriors(components)


if __name__ == "__main__":
    main()
