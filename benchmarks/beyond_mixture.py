"""What could bring latents nearer to unseen posteriors than the sampler's base is, beside the direction it has.

Takes a finished run whose base is a mixture with full covariances, and tries each route on its autoencoder, base and
decoder; judged on test images, all rows with the same noise. `nearest` is how near draws are to a training encoding,
beside draws of validation images' posteriors: below 1, something is remembered.

exemplars   a mixture between the base and the encodings themselves: a component's draws gather about its training
            images, with h of its spread (smoothed bootstrap, Silverman and Young 1987); 1 is the base, 0 the bound.
            The held-out log likelihood says how much of that is knowledge of the law
centres     components split into centres of a few images that share a covariance, and drift from them
spread      thirty such centres whose covariance is shrunk, as `sampler.base_spread` does it
flow        components warped by a coupling flow that is told the component, of the largest held-out likelihood
wide        drift with temperatures ten times as large
sinkhorn    drift whose weights are normalised over both axes to convergence; sinkhorn_wide with large temperatures
metric      drift by distances of the decoder's first layer instead of the latents'
features    drift among the encoder's convolutions' activations of decoded images, pulled back to the latents
spatial     a sampler of convolutions and attention, where latents have a plane (network spatial)
windows     drift in windows of the plane instead of whole latents, by that net; windows_mlp: by the usual one
queue       drift that sees eight batches of draws on either side, for a third of the steps
denoiser    a network that learns what the base's own denoiser lacks, and what that is in nats; and a sampler net that
            follows the difference between it and a denoiser of its own draws
rivals      flow matching from noise and from the base, fifty passes, and MeanFlow, one pass; the run's own steps

    python benchmarks/beyond_mixture.py runs/mnist-1 [--routes exemplars,sinkhorn] [--steps 1500]
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from component_flow import ComponentFlow
from for_docs import opened
from mixture_denoiser import PASSES, LearntDifference, MixtureDenoiser, corrected, fit_residual, flow
from spatial_sampler import SpatialSampler, in_windows
from torch import Tensor, nn

from ldcvae import Encodings
from ldcvae.densities.centres import Centres, split_components
from ldcvae.densities.gaussian import GaussianMixture
from ldcvae.directions.fields import Step
from ldcvae.metrics.latents import nearest_distance
from ldcvae.rivals.fitting import Budget, Draw, Fitting
from ldcvae.spatial import spatial_grid
from ldcvae.training.encode import encode_split
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World, keyed_generator, seeded_weights
from ldcvae.variants import DIRECTIONS, GENERATORS, Direction
from pipeline.judge.extractors import build_extractor
from pipeline.judge.figures import DrawJudge, Judge
from pipeline.store.data.splits import split_images
from pipeline.store.model import load_model

CPU = torch.device("cpu")
NARROW, WIDE = (0.12, 0.3, 0.6), (1.0, 3.0, 10.0)
SINKHORN_STEPS, QUEUE = 20, 8
WINDOW, SPATIAL = 4, (64, 2)  # places a side; width and depth
SHARES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)  # h of the exemplars
CENTRES, SPREADS = (16, 30, 45), (1.0, 0.95, 0.93, 0.9, 0.8)  # a component; of thirty
HELD_OUT = 3000
_PART = 256  # images at a time


class Bench:
    """A finished run, what is judged by, and the table's rows."""

    def __init__(self, folder: str):
        run = opened(Path(folder))
        self.config, self.model = run.config, load_model(run)
        self.particles = run.config.sampler.particles
        config = self.model.config
        if config.base_kind != "full" or not config.base_components or config.base_centres > 1:
            sys.exit(f"{folder}: the base must be a mixture with full covariances and one centre a component")
        self.train, self.validation, test = (
            encode_split(self.model, split_images(run, split)) for split in ("train", "validation", "test")
        )
        self.base = GaussianMixture(
            self.model.base_weights, self.model.base_means, self.model.base_scales @ self.model.base_scales.mT
        )  # in whitened coordinates, as all rows are
        extractor = build_extractor(run)
        judge = Judge(extractor, extractor(split_images(run, "test")), self.config.evaluate.neighbours, CPU)
        count = self.config.evaluate.num_images
        self.judge = DrawJudge(judge, self.model, test, lambda what, number: keyed_generator(CPU, number), count, 3)
        self.means = self.model.whitening.whiten(self.train.mean)
        unseen = self.whitened(self.validation)
        self.held_out, self.unseen = unseen(HELD_OUT, keyed_generator(CPU, "held out")), self.nearest(unseen)

    def nearest(self, draw: Draw) -> float:
        """Mean distance of draws to the nearest training encoding."""
        return nearest_distance(draw(2000, keyed_generator(CPU, "nearest")), self.means)

    def split(self, count: int) -> Centres:
        """The base with so many centres a component."""
        variances, matrix = self.train.log_variance.exp(), self.model.whitening.matrix
        return split_components(self.base, self.means, variances, matrix, count, self.config.seed)

    def whitened(self, encodings: Encodings) -> Draw:
        """Draws of posteriors, whitened."""
        return lambda n, noise: self.model.whitening.whiten(encodings.draw(n, noise))

    @torch.no_grad()
    def row(self, title: str, draw: Draw, seconds: float = 0.0) -> None:
        """Judge draws in whitened coordinates and print a line of the table."""
        draws = list(self.judge.each(lambda n, g: self.model.whitening.unwhiten(draw(n, g)), "row"))
        mean = {name: statistics.fmean(one[name] for one in draws) for name in draws[0]}
        spread = statistics.stdev(one["fd"] for one in draws)
        cells = [f"{mean[name]:.3f}"[1:] for name in ("precision", "recall", "coverage")]
        ratio = self.nearest(draw) / self.unseen
        took = f"{seconds:.0f}" if seconds else "–"
        line = [title, took, f"{mean['fd']:.3f} ± {spread:.3f}", *cells, f"{ratio:.3f}"]
        print(f"| {' | '.join(line)} |", flush=True)


# Between the base and the encodings


class Exemplars:
    """A mixture whose components gather about their training images, which keeps their means and covariances.

    Latents of component k are `m + sqrt(1 - h²) (μᵢ - m) + N(0, h² M + S)`, i one of its images, m and M mean and
    covariance of their posteriors' means and S the mean of their posteriors' covariances.

    Args:
        means: (n, d) of the posteriors.
        labels: (n,) component of each.
        noise: (K, d, d) of every component, S.
    """

    def __init__(self, means: Tensor, labels: Tensor, noise: Tensor):
        self.means, self.labels, self.noise = means, labels, noise
        (k, d), self.members = noise.shape[:2], [torch.where(labels == i)[0] for i in range(len(noise))]
        self.centres, self.spread = torch.zeros(k, d), torch.zeros(k, d, d)
        for i, rows in enumerate(self.members):
            if len(rows):
                z = means[rows].double()
                self.centres[i] = z.mean(0)
                self.spread[i] = torch.cov(z.T, correction=0)

    @classmethod
    def of(cls, bench: Bench) -> "Exemplars":
        """Every training image with the base's component that is likeliest for its mean."""
        labels = bench.base.log_joint(bench.means).argmax(1)
        variance, matrix = bench.train.log_variance.exp(), bench.model.whitening.matrix
        diagonals = [variance[labels == i].mean(0) for i in range(len(bench.base.means))]
        # Without a member there is no mean, and no draw either.
        noise = torch.stack([matrix.T @ torch.diag(one.nan_to_num()) @ matrix for one in diagonals])
        return cls(bench.means, labels, noise)

    def factors(self, h: float) -> Tensor:
        """(K, d, d) Cholesky factors of the kernels' covariances."""
        ridge = 1e-6 * torch.eye(self.means.shape[1]).double()
        return torch.linalg.cholesky(h * h * self.spread.double() + self.noise.double() + ridge).float()

    def log_likelihood(self, h: float, z: Tensor) -> float:
        """Mean log density of latents (n, d), in nats."""
        n, d = self.means.shape
        parts = []
        for rows, centre, factor in zip(self.members, self.centres, self.factors(h), strict=True):
            if len(rows):
                kernels = math.sqrt(1 - h * h) * (self.means[rows] - centre)
                white = [torch.linalg.solve_triangular(factor, x.T, upper=False).T for x in (z - centre, kernels)]
                parts.append(torch.logsumexp(-0.5 * torch.cdist(*white).square(), 1) - factor.diagonal().log().sum())
        every = torch.logsumexp(torch.stack(parts, 1), 1) - math.log(n) - 0.5 * d * math.log(2 * math.pi)
        return float(every.mean())

    def draw(self, h: float) -> Draw:
        """Draws in whitened coordinates."""
        factors, d = self.factors(h), self.means.shape[1]

        def draw(n: int, noise: torch.Generator) -> Tensor:
            image = torch.randint(len(self.means), (n,), generator=noise)
            component, xi = self.labels[image], torch.randn(n, d, generator=noise)
            centre = self.centres[component]
            drawn = centre + math.sqrt(1 - h * h) * (self.means[image] - centre)
            for part in torch.arange(n).split(1000):
                drawn[part] += torch.einsum("nij,nj->ni", factors[component[part]], xi[part])
            return drawn

        return draw


def exemplars(bench: Bench, steps: int) -> None:
    """Rows of every h."""
    mixture = Exemplars.of(bench)
    own = -float(bench.base.energy(bench.held_out).mean())
    print(f"| held-out log likelihood of the base: {own:.2f} nats | | | | | | |")
    for h in SHARES:
        words = f"exemplars, h = {h:g}, {mixture.log_likelihood(h, bench.held_out):.2f} nats"
        bench.row(words, mixture.draw(h))


def centres(bench: Bench, steps: int) -> None:
    """Rows of bases whose components have centres, and of nets from them."""
    for count in CENTRES:
        started = time.perf_counter()
        found = bench.split(count)
        took = time.perf_counter() - started
        kept = found.weights > 0
        wide = found.covariances.repeat_interleave(count, 0)[kept]
        every = GaussianMixture(found.weights[kept], found.means[kept], wide)
        print(f"| {count} centres: {-float(every.energy(bench.held_out).mean()):.2f} nats held out | | | | | | |")
        net(bench, "drift", NARROW, steps, found, count, took)


def spread(bench: Bench, steps: int) -> None:
    """Rows of bases that keep nearer to their centres, and of nets from them."""
    found = bench.split(30)
    for factor in SPREADS:
        print(f"| spread {factor:g} | | | | | | |")
        net(bench, "drift", NARROW, steps, found._replace(covariances=factor**2 * found.covariances), 30)


def component_flow(bench: Bench, steps: int) -> None:
    """A row of a flow within the components."""
    started = time.perf_counter()
    std = torch.exp(0.5 * bench.train.log_variance)
    flow = ComponentFlow(bench.base, bench.means, (std, bench.model.whitening.matrix), bench.held_out, steps)
    bench.row(f"component flow, {flow.nats:+.2f} nats", flow.draw, time.perf_counter() - started)


# Kernels that see more


def both_axes(distances: Tensor, temperature: Tensor) -> Tensor:
    """Weights (n, m) of drift: geometric mean of the softmax along either axis."""
    logits = -distances / temperature
    return torch.exp(0.5 * (logits.log_softmax(1) + logits.log_softmax(0)))


def balanced(distances: Tensor, temperature: Tensor) -> Tensor:
    """Weights (n, m) with rows that sum to 1 and columns that sum to n / m: Sinkhorn's iteration."""
    logits = -distances / temperature
    columns, total = torch.zeros(1, logits.shape[1]), math.log(len(logits) / logits.shape[1])
    for _ in range(SINKHORN_STEPS):
        rows = -torch.logsumexp(logits + columns, 1, keepdim=True)
        columns = total - torch.logsumexp(logits + rows, 0, keepdim=True)
    return torch.exp(logits + rows + columns)


def field(
    step: Step,
    targets: Tensor,
    particles: Tensor,
    weigh: Callable[[Tensor, Tensor], Tensor] = both_axes,
    features: Callable[[Tensor], Tensor] = lambda z: z,
) -> Tensor:
    """drift's field at a step's n particles: towards (m, d) targets, away from (m, d) particles, its own first."""
    at = features(step.particles)
    n, m = len(at), len(targets)
    distances = torch.cat([torch.cdist(at, features(side)) for side in (targets, particles)], 1)
    own = torch.arange(n)
    distances[own, own] = distances[own, m + own] = math.inf
    unit = distances.amin(1).median()
    total = torch.zeros_like(step.particles)
    for factor in step.settings.bandwidths:
        weights = weigh(distances, factor * unit)
        to, away = weights[:, :m], weights[:, m:]
        one = to @ targets * away.sum(1, keepdim=True) - away @ particles * to.sum(1, keepdim=True)
        total += one / one.square().mean().sqrt().clamp(min=1e-12)
    return total / len(step.settings.bandwidths)


def pulled_back(step: Step, features: Callable[[Tensor], Tensor]) -> Tensor:
    """drift's field among features (n, F) of a step's n particles, pulled back to them: `Jᵀ V`, in parts."""
    with torch.no_grad():
        targets = torch.cat([features(part) for part in step.targets.split(_PART)])
    with torch.enable_grad():
        parts = [part.detach().requires_grad_() for part in step.particles.split(_PART)]
        found = [features(part) for part in parts]
    at = torch.cat([one.detach() for one in found])
    among = field(step._replace(particles=at), targets, at).split(_PART)
    slopes = [torch.autograd.grad(*one)[0] for one in zip(found, parts, among, strict=True)]
    together = torch.cat(slopes)
    return together / together.square().mean().sqrt().clamp(min=1e-12)


def directions(bench: Bench) -> None:
    """Registers the directions that are tried; none of them does anything across ranks."""
    model, draw = bench.model, bench.whitened(bench.train)
    first = nn.Sequential(*list(model.decoder.children())[:2])
    convolutions = nn.Sequential(*itertools.takewhile(lambda one: not isinstance(one, nn.Flatten), model.encoder))
    past: deque[Tensor] = deque(maxlen=QUEUE - 1)  # batches before this one
    steps = itertools.count()

    def activations(latents: Tensor) -> Tensor:
        return first(model.whitening.unwhiten(latents)).flatten(1)

    def seen(latents: Tensor) -> Tensor:
        return convolutions(model.decode(model.whitening.unwhiten(latents))).flatten(1)

    def queue(step: Step) -> Tensor:
        n, noise = len(step.particles), keyed_generator(CPU, "queue", next(steps))
        while len(past) < QUEUE - 1:  # before the first step: the base's
            past.append(model.draw_base(n, noise))
        targets = torch.cat([step.targets, draw((QUEUE - 1) * n, noise)])
        found = field(step, targets, torch.cat([step.particles, *past]))
        past.append(step.particles.clone())
        return found

    for name, one in (
        ("sinkhorn", lambda step: field(step, step.targets, step.particles, balanced)),
        ("metric", lambda step: field(step, step.targets, step.particles, features=activations)),
        ("features", lambda step: pulled_back(step, seen)),
        ("queue", queue),
    ):
        DIRECTIONS.register(Direction(name, name, one))
    if model.config.network == "spatial":
        DIRECTIONS.register(
            Direction("windows", "windows", in_windows(DIRECTIONS["drift"].field, plane(bench), WINDOW))
        )


def plane(bench: Bench) -> tuple[int, int, int]:
    """(c, h, w) of the latents."""
    config = bench.model.config
    if config.network != "spatial":
        sys.exit(f"the run's network is {config.network}: its latents have no plane")
    height, width = spatial_grid(config.image_shape)
    return config.latent_dim // (height * width), height, width


def net(
    bench: Bench,
    direction: str,
    widths: tuple[float, ...],
    steps: int,
    base: Centres | None = None,
    centres: int = 1,
    seconds: float = 0.0,
    sampler: nn.Module | None = None,
) -> None:
    """A row of a net that follows a direction from the run's own base; or of another base, and of a net from that."""
    model = bench.model
    torch.manual_seed(bench.config.seed)
    config = model.config
    model.reset_sampler(config.sampler_width, config.sampler_depth, config.base_components, centres)
    model.set_base(*(base or (bench.base.weights, bench.base.means, bench.base.covariances)))
    if sampler is not None:
        model.sampler = sampler
    if base is not None:
        bench.row(f"base, {int((base.weights > 0).sum()):,} centres", model.draw_base, seconds)
    own = {"direction": direction, "bandwidths": widths, "steps": steps, "particles": bench.particles}
    settings = replace(bench.config.sampler, **own)
    started = time.perf_counter()
    phase = SamplerPhase(model, bench.train, bench.validation, settings, World(), bench.config.seed, fitted=True)
    for _ in phase.blocks(settings.checkpoint_steps):
        pass
    phase.adopt_average()
    took = time.perf_counter() - started
    kind = type(model.sampler).__name__
    bench.row(
        f"{kind}, {direction}, {widths}, {steps:,} steps", lambda n, g: model.sampler(model.draw_base(n, g)), took
    )


def denoiser(bench: Bench, steps: int) -> None:
    """What the base lacks in nats; rows of the probability flow from its draws, and of a net that follows."""
    base, draw, size = MixtureDenoiser(bench.base), bench.whitened(bench.train), bench.config.sampler.particles
    started = time.perf_counter()
    learnt, nats = fit_residual(base, draw, bench.held_out, steps, size, bench.config.seed)
    took = time.perf_counter() - started
    print(f"| denoiser: {nats:.2f} nats of held-out latents more than the base | | | | | | |")
    learnt_one = corrected(base, learnt)
    for title, model, seconds in (("the base's own denoiser", base, 0.0), ("learnt denoiser", learnt_one, took)):
        bench.row(f"{title}, {PASSES} passes", flow(model, bench.model.draw_base), seconds)
    DIRECTIONS.register(Direction("learnt", "learnt", LearntDifference(base, learnt, bench.config.seed)))
    net(bench, "learnt", NARROW, steps // 3)


def spatial(bench: Bench, steps: int, direction: str = "drift") -> None:
    """A row of a sampler that knows the plane."""
    with seeded_weights(bench.config.seed):
        sampler = SpatialSampler(plane(bench), *SPATIAL)
    net(bench, direction, NARROW, steps, sampler=sampler)


def rivals(bench: Bench, steps: int) -> None:
    """Rows of other generators, fitted to the same encodings."""
    budget = Budget(sampler=bench.config.sampler)
    for name in ("flow_matching", "flow_matching_from_base", "mean_flow"):
        started = time.perf_counter()
        fitting = Fitting(name, bench.model, bench.train, bench.validation, None, None, budget, bench.config.seed)
        draw = GENERATORS[name].fit(fitting)
        took = time.perf_counter() - started
        bench.row(name, lambda n, g, draw=draw: bench.model.whitening.whiten(draw(n, g)), took)


ROUTES: dict[str, Callable[[Bench, int], None]] = {
    "exemplars": exemplars,
    "centres": centres,
    "spread": spread,
    "flow": component_flow,
    "drift": lambda bench, steps: net(bench, "drift", NARROW, steps),
    "wide": lambda bench, steps: net(bench, "drift", WIDE, steps),
    "sinkhorn": lambda bench, steps: net(bench, "sinkhorn", NARROW, steps),
    "sinkhorn_wide": lambda bench, steps: net(bench, "sinkhorn", WIDE, steps),
    "metric": lambda bench, steps: net(bench, "metric", NARROW, steps),
    "features": lambda bench, steps: net(bench, "features", NARROW, steps),
    "spatial": spatial,
    "windows": lambda bench, steps: spatial(bench, steps, "windows"),
    "windows_mlp": lambda bench, steps: net(bench, "windows", NARROW, steps),
    "queue": lambda bench, steps: net(bench, "queue", NARROW, steps // 3),
    "denoiser": denoiser,
    "rivals": rivals,
}


@torch.no_grad()
def bounds(bench: Bench) -> None:
    """Rows that are there whatever the route."""
    bench.row("base", bench.model.draw_base)
    bench.row("net of the run", lambda n, g: bench.model.sampler(bench.model.draw_base(n, g)))
    bench.row("posteriors of validation images", bench.whitened(bench.validation))
    bench.row("posteriors of training images, the bound", bench.whitened(bench.train))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--routes", default="centres,drift", help="some of " + ", ".join(ROUTES))
    parser.add_argument("--steps", type=int, default=1500, help="of a sampler net")
    parser.add_argument("--particles", type=int, help="of its steps, instead of the run's own number")
    options = parser.parse_args()
    if unknown := set(options.routes.split(",")) - set(ROUTES):
        parser.error(f"no such route: {', '.join(sorted(unknown))}")
    keep_freed_memory()
    bench = Bench(options.run)
    bench.particles = options.particles or bench.config.sampler.particles
    directions(bench)
    print("| latents | seconds | FD | precision | recall | coverage | nearest |\n|---|---|---|---|---|---|---|")
    bounds(bench)
    for route in options.routes.split(","):
        ROUTES[route](bench, options.steps)


if __name__ == "__main__":
    main()
