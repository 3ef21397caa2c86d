"""Fit one generator of a comparison on a trained autoencoder, draw from it, and judge the decoded images."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldcvae.densities.kernel_mixture import KernelMixture
from ldcvae.directions.kernels import nearest_neighbour_distance
from ldcvae.metrics.latents import median_bandwidths, mmd2, nearest_distance, sliced_wasserstein
from ldcvae.rivals.generators import Fit, fit_autoregressive_flow, fit_flow_matching, fit_two_stage
from ldcvae.encodings import Encodings
from ldcvae.densities.mcmc import hmc
from ldcvae.metrics.images import frechet_distance
from ldcvae.model import LDCVAE
from pipeline.store.checkpoint import NewestCheckpoint
from pipeline.compare.cells import SAMPLER_NETS, Cell, Common, StoredAutoencoder, read_autoencoder
from pipeline.evaluate.stage import decode, image_figures
from pipeline.judge.generators import (
    Draw,
    gaussian_draw,
    gibbs_density,
    langevin_draw,
    mixture_draw,
    prior_draw,
    timed_draw,
)
from ldcvae.training.heap import peak_mb, reset_peak
from ldcvae.training.sampler import SamplerPhase
from pipeline.judge.pages.pictures import image_grid
from pipeline.config.sections import Config
from pipeline.store.folder import Folder
from ldcvae.training.world import World, keyed_generator

__all__ = ["GENERATOR_LABELS", "judge_generator", "passes"]

GENERATOR_LABELS = {
    "prior": "prior",
    "gaussian": "Gaussian fit",
    "gmm": "GMM, {components} components",
    "gmm_tuned": "GMM, components chosen",
    "two_stage": "second VAE (two-stage)",
    "maf": "masked autoregressive flow",
    "flow_matching": "flow matching, {euler_steps} steps",
    "langevin": "annealed Langevin, {chain_steps} steps",
    "hmc": "annealed HMC, {chain_steps} steps",
    "stein": "sampler net, stein",
    "score_difference": "sampler net, score difference",
    "drift": "sampler net, drift",
    "encoder": "encoder posterior",
}
_FLOW_TRANSFORMS = 5
_GRID = 8  # images per side of a cell's sample grid
_NEAREST = 2000  # latents and encodings that distances to the nearest are taken over


def passes(name: str, config: Config) -> int:
    """Passes of a network, or scores of a density, that a latent costs; 0 for a draw in closed form."""
    steps = config.evaluate.langevin_steps
    dim = config.model.latent_dim
    of = {"langevin": steps, "hmc": steps, "flow_matching": config.compare.euler_steps, "two_stage": 1}
    of |= {"maf": dim * _FLOW_TRANSFORMS} | dict.fromkeys(SAMPLER_NETS, 1)
    return of.get(name, 0)


class _Generators:
    """Builds the draw of any generator from a trained autoencoder; `seconds` is what fitting took.

    Args:
        config: of the run.
        stored: the autoencoder, on its device.
        cell: to compute.
        kept: checkpoints of a sampler net's training.
    """

    def __init__(self, config: Config, stored: StoredAutoencoder, cell: Cell, kept: NewestCheckpoint):
        self.config, self.stored, self.cell, self.kept = config, stored, cell, kept
        self.setting = cell.job["setting"]
        self.seed = cell.job["seed"]
        self.model, self.encodings = stored.model, stored.encodings["train"]
        self.whitening, self.device = stored.model.whitening, self.encodings.mean.device
        self.seconds = 0.0

    def _noise(self, purpose: str) -> torch.Generator:
        return keyed_generator(self.device, self.seed, "compare", self.cell.job["name"], purpose)

    def build(self) -> Draw:
        """The draw, `(n, generator) -> (n, d)` latents."""
        name = self.cell.job["name"]
        started = time.perf_counter()
        if name in SAMPLER_NETS:
            return self._sampler_net(name)  # counts its own seconds, those before a restart too
        simple: dict[str, Callable[[], Draw]] = {
            "prior": self._prior,
            "gaussian": lambda: gaussian_draw(self.encodings),
            "gmm": lambda: self._mixture(self.config.evaluate.gmm_components),
            "gmm_tuned": lambda: self._mixture(int(self.setting)),
            "langevin": lambda: langevin_draw(self._density(), self.whitening, self.config.evaluate.langevin_steps),
            "hmc": self._hmc,
            "two_stage": lambda: self._unwhitened(fit_two_stage(self._fit())),
            "maf": lambda: self._unwhitened(fit_autoregressive_flow(self._fit(), _FLOW_TRANSFORMS)),
            "flow_matching": lambda: self._unwhitened(
                fit_flow_matching(self._fit(), self.config.compare.euler_steps)
            ),
            "encoder": lambda: self.encodings.draw,
        }
        draw = simple[name]()
        self.seconds = time.perf_counter() - started
        return draw

    def _unwhitened(self, draw: Draw) -> Draw:
        return lambda n, noise: self.whitening.unwhiten(draw(n, noise))

    def _prior(self) -> Draw:
        prior = self.stored.prior
        if prior is None:
            return prior_draw(self.model.config.latent_dim, self.device)
        return KernelMixture(prior.mean, prior.log_variance).sample

    def _mixture(self, components: int) -> Draw:
        return mixture_draw(self.encodings, self.whitening, components, self._noise("fit"))

    def _density(self) -> KernelMixture:
        draws = self.whitening.whiten(self.encodings.draw(self.config.sampler.particles, self._noise("unit")))
        floor = float(self.setting * nearest_neighbour_distance(draws))
        return gibbs_density(self.encodings, self.whitening, self._noise("fit"), floor)

    def _hmc(self) -> Draw:
        density = self._density()
        levels, leapfrog = max(1, self.config.evaluate.langevin_steps // 12), 10
        last = max(1, (self.config.evaluate.langevin_steps - levels * leapfrog) // leapfrog)

        def draw(n: int, noise: torch.Generator) -> Tensor:
            return hmc(density, n, levels=levels, trajectories=last, leapfrog_steps=leapfrog, generator=noise)

        return self._unwhitened(draw)

    def _fit(self) -> Fit:
        sampler, noise = self.config.sampler, self._noise("fit")
        return Fit(
            lambda n: self.whitening.whiten(self.encodings.draw(n, noise)),
            self.model.config.latent_dim,
            steps=sampler.steps,
            batch=sampler.particles,
            learning_rate=self.setting,
            width=sampler.width,
            depth=sampler.depth,
            generator=noise,
        )

    def _sampler_net(self, direction: str) -> Draw:
        config, compare = self.config.sampler, self.config.compare
        widths = {"stein": compare.stein_bandwidths, "drift": compare.drift_temperatures}
        bandwidths = [self.setting * width for width in widths.get(direction, config.bandwidths)]
        own = config.model_copy(update={"direction": direction, "bandwidths": bandwidths})
        held_out = self.stored.encodings["validation"]
        phase = SamplerPhase(self.model, self.encodings, held_out, own, World(device=self.device), self.seed)
        if (state := self.kept.load()) is not None:
            self.model.load_state_dict(state["model"])
            phase.load(state["phase"])
        for step in phase.blocks(config.checkpoint_steps):
            if step < phase.total:
                self.kept.save({"model": self.model.state_dict(), "phase": phase.state()}, step)
        phase.adopt_average()
        self.seconds = phase.seconds
        return self.model.sample_latents


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


class _Judge:
    """Figures of a generator's draws."""

    def __init__(self, config: Config, stored: StoredAutoencoder, common: Common, seed: int):
        self.config, self.stored, self.common, self.seed = config, stored, common, seed
        self.model: LDCVAE = stored.model
        self.device = stored.model.device
        self.extractor = common.extractor.to(self.device)

    def _noise(self, purpose: str, draw: int = 0) -> torch.Generator:
        return keyed_generator(self.device, self.seed, "compare", "judge", purpose, draw)

    def selection(self, draw: Draw) -> float:
        """FD to the validation images, by which candidates are chosen."""
        latents = draw(self.config.compare.selection_images, self._noise("validation"))
        features = self.extractor(decode(self.model, latents))
        return frechet_distance(features, self.common.validation.to(self.device))

    def test(self, draw: Draw) -> dict[str, float]:
        """Means over `evaluate.draws` of all figures, against the test images and their encodings."""
        settings, whiten = self.config.evaluate, self.model.whitening.whiten
        real, held_out = self.common.test.to(self.device), self.stored.encodings["test"]
        train = self.stored.encodings["train"]
        n = settings.num_images
        count = min(_NEAREST, len(train), len(held_out), n)
        bandwidths = median_bandwidths(whiten(held_out.draw(n, self._noise("truth"))))
        timed_draw(draw, min(n, 200), self._noise("warm-up"))  # the first call of a net pays for its set-up
        rows = []
        for number in range(settings.draws):
            latents, rate = timed_draw(draw, n, self._noise("test", number))
            figures = image_figures(self.extractor(decode(self.model, latents)), real, settings.neighbours)
            u, truth = whiten(latents), whiten(held_out.draw(n, self._noise("truth", number)))
            figures["mmd2"] = mmd2(u, truth, bandwidths)
            figures["sliced_wasserstein"] = sliced_wasserstein(u, truth, generator=self._noise("slices", number))
            for name, part in (("nearest_train", train), ("nearest_held_out", held_out)):
                chosen = self._some(part, count, number)
                figures[name] = nearest_distance(u[:count], whiten(chosen))
            rows.append(figures | {"latents_per_s": rate})
        return _mean(rows)

    def _some(self, part: Encodings, count: int, number: int) -> Tensor:
        noise = self._noise("nearest", number)
        return part.mean[torch.randperm(len(part), generator=noise, device=self.device)[:count]]

    def grid(self, draw: Draw) -> bytes:
        """An 8 by 8 grid of images as PNG."""
        latents = draw(_GRID**2, self._noise("grid"))
        return image_grid(decode(self.model, latents).cpu().numpy(), _GRID)


def judge_generator(job: dict[str, Any], cell: Cell, common: Common) -> dict[str, Any]:
    """Fit, draw and judge the generator of a cell, and write the cell.

    Args:
        job: `config` (dict), `run` (URL of the run's folder).
        cell: to compute.
        common: what all cells share.

    Returns:
        The cell's record: `selection` (FD to validation images), `figures` (means over draws on test images, seconds
        of fitting, peak_mb).

    Raises:
        NonFiniteLossError: from a sampler net; FloatingPointError from the other fits.
    """
    config, run = Config.model_validate(job["config"]), Folder(job["run"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reset_peak()
    found = read_autoencoder(run, cell, config, common.shape)
    encodings = {
        split: Encodings(part.mean.to(device), part.log_variance.to(device))
        for split, part in found.encodings.items()
    }
    prior = found.prior
    if prior is not None:
        prior = Encodings(prior.mean.to(device), prior.log_variance.to(device))
    stored = StoredAutoencoder(found.model.to(device), encodings, prior)
    kept = NewestCheckpoint(run / f"compare/checkpoints/{cell.key}")
    generators = _Generators(config, stored, cell, kept)
    draw = generators.build()
    peak = peak_mb()
    with torch.no_grad():
        judge = _Judge(config, stored, common, cell.job["seed"])
        selection, figures, grid = judge.selection(draw), judge.test(draw), judge.grid(draw)
    run.write(f"{cell.folder}/grid.png", grid)
    record = {
        "cell": cell.job,
        "selection": selection,
        "figures": figures | {"seconds": generators.seconds, "peak_mb": peak},
        "finished": time.time(),
    }
    run.write_json(cell.record, record)
    run.remove(f"compare/checkpoints/{cell.key}")
    return record
