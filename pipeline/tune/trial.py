"""One trial of a search: train as its configuration says, report validation figures on the way and at the end.

A trial resumes by itself: its checkpoints lie under the study's and its own number on the run's storage, wherever
and however often it is started. Trials that change the sampler only take the autoencoder and the encodings from the
object store instead of training them. Runs with or without Ray: the caller gives the ranks and `report`.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldcvae.batches import batches
from ldcvae.encodings import Encodings
from ldcvae.losses import as_float, split_posterior
from ldcvae.metrics.reconstruction import reconstruction_error
from ldcvae.training.autoencoder import AutoencoderPhase, use_memory_format
from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.epochs import EpochPhase
from ldcvae.training.heap import keep_freed_memory, peak_mb, reset_peak
from ldcvae.training.monitor import NonFiniteLossError
from ldcvae.training.phase import Phase
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World, keyed_generator
from pipeline.config.errors import StorageError
from pipeline.config.sections import Config
from pipeline.judge.figures import MAXIMISED, Reference, decoded
from pipeline.judge.generators import TimedParts
from pipeline.judge.pages.pictures import image_grid
from pipeline.remote.failures import failure_reason
from pipeline.remote.memory import own_memory
from pipeline.store.checkpoint import NewestCheckpoint
from pipeline.store.data.splits import some_images, split_images
from pipeline.store.data.stream import StreamedSplit
from pipeline.store.model import build_model, perceptual_features
from pipeline.store.run import Run

__all__ = ["Report", "Shared", "Trial", "phases_of", "run_trial"]

WORST = 1e12  # the objective of a failed trial: finite, because a NaN would leave Optuna waiting for ever
_GRID = 8  # images per side of a trial's sample grid
_MOST = 1000  # images per pass of encoder and decoder

Generate = Callable[[int, torch.Generator], Iterator[Tensor]]  # n -> images in [0, 1], n in all, a part at a time
Report = Callable[[dict[str, Any]], None]  # see `run_trial`; called on every rank


@dataclass(frozen=True)
class Shared:
    """What trials that change only the sampler have in common.

    Attributes:
        autoencoder: weights of encoder and decoder.
        encodings: of the training images.
        validation: of the validation images.
        reconstruction: mean squared error per pixel of validation images.
    """

    autoencoder: dict[str, Tensor]
    encodings: Encodings
    validation: Encodings
    reconstruction: float


@dataclass(frozen=True)
class Trial:
    """Which trial, of which search.

    Attributes:
        run: under the trial's own configuration.
        study: name of the study.
        number: of the trial.
        threads: CPU threads of its process.
        reference: what all trials are judged by.
        shared: for spaces that touch only the sampler, else None.
    """

    run: Run
    study: str
    number: int
    threads: int
    reference: Reference
    shared: Shared | None


def phases_of(config: Config, shares: bool) -> int:
    """Training phases of a trial, the same for all trials of a search; each has `tune.reports` reports.

    Args:
        config: of the search or a trial.
        shares: whether trials share an autoencoder and train the sampler alone.

    Example:
        >>> [phases_of(Config(), shares) for shares in (True, False)]
        [1, 2]
    """
    between = config.decoder.epochs > 0 or any(path.startswith("decoder.") for path in config.tune.space)
    return 1 if shares else 2 + between


class _Running:
    """State of one run of a trial."""

    def __init__(self, trial: Trial, world: World, report: Report):
        self.run, self.config, self.trial = trial.run, trial.run.config, trial
        self.world, self.report = world, report
        reference = trial.reference
        self.judge = reference.judge("validation", self.config.evaluate.neighbours, world.device)
        self.checkpoints = NewestCheckpoint(self.run.folder / f"tune/checkpoints/{trial.study}/{trial.number:05d}")
        self.state = self.checkpoints.load()
        self.before = self.state["seconds"] if self.state else 0.0
        self.started = time.perf_counter()
        torch.manual_seed(self.config.seed)  # initial weights; everything later is keyed by step
        self.model = build_model(self.config, reference.shape).to(world.device)
        if self.state is not None:
            self.model.load_state_dict(self.state["model"])

    def train(self) -> None:
        config, world, shared = self.config, self.world, self.trial.shared
        offset = 0
        if shared is not None:
            self.model.load_state_dict(shared.autoencoder, strict=False)
            encodings, held_out = (
                Encodings(part.mean.to(world.device), part.log_variance.to(world.device))
                for part in (shared.encodings, shared.validation)
            )
            reconstruction = shared.reconstruction
        else:
            train, validation = (split_images(self.run, split) for split in ("train", "validation"))
            self._autoencoder(train, validation)
            self.model.eval()
            encodings, held_out = (encode_split(self.model, images, world) for images in (train, validation))
            self._decoder(train, validation, encodings)
            reconstruction = reconstruction_error(self.model.reconstruct, validation, world.device)
            offset = (phases_of(config, shares=False) - 1) * config.tune.reports
        fused, begun = bool(config.train.fused), self.state["phase"] if self.state is not None else None
        second = SamplerPhase(
            self.model,
            encodings,
            held_out,
            config.sampler,
            world,
            config.seed,
            fused,
            begun,
            fitted=shared is None and config.decoder.fits_base,
        )
        reports = config.tune.reports
        for step in second.blocks(math.ceil(config.sampler.steps / reports)):
            if step < config.sampler.steps:
                progress = offset + max(1, reports * step // config.sampler.steps)
                self._intermediate(second, progress, lambda n, g: self._generate(second, n, g), reconstruction)
        figures: dict[str, float] = {}
        if world.rank == 0:
            figures = self._figures(lambda n, g: self._generate(second, n, g), config.tune.draws, reconstruction)
            figures |= {**second.history[-1], "seconds": self._seconds()}  # of all phases
            figures = {name: value for name, value in figures.items() if name not in ("phase", "time")}
            self._save(second, offset + reports)
            grid = torch.cat([*self._generate(second, _GRID**2, keyed_generator(world.device, config.seed, "grid"))])
            self.run.folder.write(
                f"tune/grids/{self.trial.study}/{self.trial.number:05d}.png", image_grid(grid.cpu().numpy(), _GRID)
            )
        self._tell(offset + reports, figures, finished=True)

    def _autoencoder(self, train: Tensor | StreamedSplit, validation: Tensor | StreamedSplit) -> None:
        """Phase 1, unless the checkpoint is past it."""
        config, world = self.config, self.world
        use_memory_format(self.model, config.train)
        if self.state is not None and self.state["phase"]["phase"] != AutoencoderPhase.name:
            return
        first = AutoencoderPhase(self.model, train, validation, config.train, world, config.seed)
        if self.state is not None:
            first.load(self.state["phase"])
            self.state = None
        encoder, decoder = first.averaged["encoder"], first.averaged["decoder"]  # type: ignore[index]
        self._walk(first, config.train.epochs, 0, train, encoder, decoder)

    def _decoder(
        self, train: Tensor | StreamedSplit, validation: Tensor | StreamedSplit, encodings: Encodings
    ) -> None:
        """The phase between, where the configuration has one, unless the checkpoint is past it."""
        config, world = self.config, self.world
        if config.decoder.epochs == 0 or (
            self.state is not None and self.state["phase"]["phase"] == SamplerPhase.name
        ):
            return
        between = DecoderPhase(
            self.model,
            train,
            encodings,
            validation,
            config.decoder,
            world,
            config.seed,
            autoencoder=config.train,
            sampler=config.sampler,
            features=perceptual_features(config, self.run.shape, world.device),
            state=self.state["phase"] if self.state is not None else None,
        )
        self.state = None
        self._walk(between, config.decoder.epochs, config.tune.reports, train, self.model.encoder, between.averaged)
        self.model.eval()

    def _walk(
        self,
        phase: EpochPhase,
        epochs: int,
        offset: int,
        train: Tensor | StreamedSplit,
        encoder: nn.Module,
        decoder: nn.Module,
    ) -> None:
        """A phase over the images from where it is to its end, with reports of what these networks give."""
        config, world, reports = self.config, self.world, self.config.tune.reports
        every = math.ceil(epochs / reports)
        some = some_images(train, config.tune.num_images, config.seed, "bound")
        if len(some) < config.tune.num_images:  # few enough to be held
            held = torch.cat([*batches(some, _MOST)])
            some = held[torch.arange(config.tune.num_images) % len(held)]

        def encoder_draws(n: int, generator: torch.Generator) -> Iterator[Tensor]:
            # What a perfect sampler would give with this autoencoder: a figure of the same kind, before there is one.
            for part in batches(some, _MOST, 0, n):
                posterior = split_posterior(encoder(as_float(part.to(world.device))))
                noise = torch.randn(posterior.mean.shape, generator=generator, device=world.device)
                yield torch.sigmoid(decoder(posterior.draw(noise)).float())

        for epoch in phase.epochs():
            if epoch % every == 0 or epoch == epochs:
                progress = offset + max(1, reports * epoch // epochs)
                self._intermediate(phase, progress, encoder_draws, phase.history[-1]["validation_mse"])
        phase.adopt_average()

    @torch.no_grad()
    def _generate(self, phase: SamplerPhase, n: int, generator: torch.Generator) -> Iterator[Tensor]:
        """n images in [0, 1] of the sampler as it is now, a part at a time."""
        model = self.model
        yield from decoded(
            model,
            model.whitening.unwhiten(phase.averaged(model.draw_base(n, generator, self.config.sample.temperature))),
        )

    @torch.no_grad()
    def _figures(self, generate: Generate, draws: int, reconstruction: float) -> dict[str, float]:
        settings, series, rates = self.config.tune, [], []
        for draw in range(draws):
            generator = keyed_generator(self.world.device, self.config.seed, "tune", draw)
            timed = TimedParts(generate(settings.num_images, generator), self.world.device)
            series.append(self.judge.figures(self.judge.extractor.of(timed)))
            rates.append(settings.num_images / timed.seconds)
        figures = {name: sum(values[name] for values in series) / draws for name in series[0]}
        spread = math.sqrt(sum((values["fd"] - figures["fd"]) ** 2 for values in series) / max(1, draws - 1))
        return figures | {"fd_spread": spread, "reconstruction": reconstruction, "images_per_s": max(rates)}

    @torch.no_grad()
    def _intermediate(self, phase: Phase, progress: int, generate: Generate, reconstruction: float) -> None:
        figures: dict[str, float] = {}
        if self.world.rank == 0:
            if self.config.tune.metrics[0] == "fd":  # the others of `_figures` take longer than the images themselves
                generator = keyed_generator(self.world.device, self.config.seed, "tune", 0)
                features = self.judge.extractor.of(generate(self.config.tune.num_images, generator))
                figures = {"fd": self.judge.distance(features)}
            else:
                figures = self._figures(generate, 1, reconstruction)
            self._save(phase, progress)
        self._tell(progress, figures, finished=False)

    def _tell(self, progress: int, figures: dict[str, float], finished: bool) -> None:
        metric = self.config.tune.metrics[0]
        objective = figures.get(metric, WORST)
        if figures and not math.isfinite(objective):
            raise FloatingPointError(f"{metric} is not finite")
        # The peak too, which a process that is killed cannot tell any more.
        end = {"finished": finished, "failure": "", "peak_mb": peak_mb()}
        self.report({"progress": progress, "objective": objective, "figures": figures} | end)

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    def _save(self, phase: Phase, progress: int) -> None:
        state = {"model": self.model.state_dict(), "phase": phase.state(), "seconds": self._seconds()}
        self.checkpoints.save(state, progress)


def run_trial(trial: Trial, world: World, report: Report) -> None:
    """Train one trial, from its last checkpoint where there is one.

    Args:
        trial: which.
        world: this rank.
        report: called on every rank with `progress` (reports done, out of `tune.reports` a phase), `objective` (the
            first metric), `figures` (the last report has all of them), `peak_mb` of this process, `finished`, and
            `failure`: the reason when the trial cannot go on, which is reported and not raised, because trying again
            would end the same way.
    """
    keep_freed_memory()
    reset_peak()  # of the trial that this process served before
    torch.set_num_threads(trial.threads)
    try:
        _Running(trial, world, report).train()
    except Exception as error:
        if isinstance(error, StorageError):
            raise  # Tune tries again from the last checkpoint
        # On several ranks only this error is sure to be on all of them; otherwise the others would wait for ever.
        if world.size > 1 and not isinstance(error, NonFiniteLossError):
            raise
        report(
            {
                "progress": 0,
                "objective": -WORST if trial.run.config.tune.metrics[0] in MAXIMISED else WORST,
                "figures": {},
                "finished": False,
                "failure": failure_reason(error, own_memory()),
            }
        )
