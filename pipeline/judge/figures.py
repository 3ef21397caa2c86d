"""Figures of merit: of generated images against real ones, and of drawn latents against held-out encodings.

One judge of images and one of draws, for every stage that judges: evaluate, tune, compare.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ldcvae.batches import Chunks, batches, rows_at_a_time
from ldcvae.encodings import Encodings
from ldcvae.metrics.images import frechet_distance, kid, kid_within
from ldcvae.metrics.latents import median_bandwidths, mmd2, mmd2_within, nearest_distance, sliced_wasserstein
from ldcvae.metrics.neighbours import ball_radii, prdc
from ldcvae.metrics.reconstruction import reconstruction_error
from ldcvae.model import LDCVAE
from ldcvae.rivals.fitting import Draw
from pipeline.judge.extractors import Extractor, build_extractor, second_extractor
from pipeline.judge.generators import timed_draw
from pipeline.remote.connect import run_on_accelerator
from pipeline.remote.device import process_device
from pipeline.store.data.splits import split_images
from pipeline.store.run import Run

__all__ = ["MAXIMISED", "DrawJudge", "Judge", "Reference", "decoded", "make_reference"]

MAXIMISED = {"precision", "recall", "density", "coverage", "images_per_s"}
"""Figures of which more is better."""

_MOST = 1000  # latents or images per pass of a network
_ON_DEVICE = 2**27  # numbers of features compared where the images are made; more of them, in float64, on the CPU
_PAIRED = 20_000  # images of a side of which all pairs are compared: that time goes with their square
_NEAREST = 2000  # latents and encodings that distances to the nearest are taken over


@dataclass(frozen=True)
class Reference:
    """What all cells of a comparison or trials of a search are judged by, on the CPU.

    Attributes:
        shape: (C, H, W) of the images.
        extractor: of features.
        features: split -> (n, k) features of its images.
        second: another extractor, or None.
        second_features: of that.
    """

    shape: tuple[int, int, int]
    extractor: Extractor
    features: dict[str, Tensor]
    second: Extractor | None = None
    second_features: dict[str, Tensor] = field(default_factory=dict)

    @property
    def second_sha256(self) -> str:
        """Hash of the second extractor's weights; empty where there is none."""
        return "" if self.second is None else self.second.sha256

    def judge(self, split: str, neighbours: int, device: torch.device) -> "Judge":
        """The judge that compares with the images of a split."""
        second = None if self.second is None else (self.second, self.second_features[split])
        return Judge(self.extractor, self.features[split], neighbours, device, second)


def _reference(job: tuple[Run, tuple[str, ...], bool]) -> Reference:
    """The reference, made on this process's device."""
    run, splits, with_second = job
    device, cpu = process_device(run.config), torch.device("cpu")

    first, second = build_extractor(run).to(device), second_extractor(run) if with_second else None
    second = second and second.to(device)
    features: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for split in splits:
        images = split_images(run, split)
        features[split] = first(images)
        if second is not None:
            others[split] = second(images)
        del images  # one split in memory at a time
    reference = Reference(run.shape, first.to(cpu), features, second and second.to(cpu), others)
    torch.cuda.empty_cache()  # this process only waits from here on, while cells or trials want the GPU's memory
    return reference


def make_reference(run: Run, *splits: str, second: bool = True) -> Reference:
    """The reference of a run's data set, made here or on a GPU of the cluster.

    Args:
        run: the run.
        splits: whose images are judged by.
        second: whether `evaluate.second_extractor` judges too.

    Raises:
        ConfigError: if the extractor does not fit the data.
    """
    return run_on_accelerator(run.config, _reference, (run, splits, second))


@torch.no_grad()
def decoded(model: LDCVAE, latents: Tensor) -> Iterator[Tensor]:
    """Images (n, C, H, W) in [0, 1] of latents (N, d), in parts that need not be held together."""
    for part in latents.split(rows_at_a_time(model.config.image_shape, _MOST)):
        yield model.decode(part)


def _spaced(features: Tensor) -> Tensor:
    """(n, k) features, evenly spaced ones where there are more than `_PAIRED`."""
    if len(features) <= _PAIRED:
        return features
    return features[torch.arange(_PAIRED, device=features.device) * len(features) // _PAIRED]


def _placed(features: Tensor, device: torch.device) -> Tensor:
    return features.to(device) if features.numel() <= _ON_DEVICE else features.cpu()


class Judge:
    """Judges generated images by their features.

    All but the Fréchet distance are of at most 20,000 images a side, evenly spaced through them.

    Args:
        extractor: of features.
        real: (m, k) features of the real images.
        neighbours: k of precision, recall, density, coverage.
        device: where images come from.
        second: another extractor and its features of the real images; adds the figure `fd_second`.
    """

    def __init__(
        self,
        extractor: Extractor,
        real: Tensor,
        neighbours: int,
        device: torch.device,
        second: tuple[Extractor, Tensor] | None = None,
    ):
        self.extractor, self.neighbours = extractor.to(device), neighbours
        self.real = _placed(real, device)
        self.second = None if second is None else (second[0].to(device), _placed(second[1], device))

    @cached_property
    def _radii(self) -> Tensor:
        # Once: all pairs of real images, however few are generated.
        return ball_radii(_spaced(self.real), self.neighbours)

    @cached_property
    def _within(self) -> float:
        return kid_within(_spaced(self.real))

    def distance(self, features: Tensor) -> float:
        """The Fréchet distance of features (n, k) alone: the other figures take longer than drawing the images."""
        return frechet_distance(features.to(self.real.device), self.real)

    def judged(self, parts: Iterable[Tensor]) -> dict[str, float]:
        """All figures of images that come in parts, (n, C, H, W) each."""
        if self.second is None:
            return self.figures(self.extractor.of(parts))
        second, real = self.second
        pairs = [(self.extractor.of([part]), second.of([part])) for part in parts]
        features, others = (torch.cat(of) for of in zip(*pairs, strict=True))
        return self.figures(features) | {"fd_second": frechet_distance(others.to(real.device), real)}

    def of_images(self, images: Tensor | Chunks) -> dict[str, float]:
        """All figures of images (N, C, H, W), in memory or on storage."""
        return self.judged(batches(images, _MOST))

    def figures(self, features: Tensor) -> dict[str, float]:
        """All figures of features (n, k), which know nothing of a second extractor."""
        features = features.to(self.real.device)
        real, fake = _spaced(self.real), _spaced(features)
        quality = prdc(real, fake, k=self.neighbours, radii=self._radii)
        return {
            "fd": self.distance(features),
            "kid": kid(fake, real, within=self._within).mean,
            "precision": quality.precision,
            "recall": quality.recall,
            "density": quality.density,
            "coverage": quality.coverage,
        }

    def reconstruction(self, model: LDCVAE, images: Tensor | Chunks) -> dict[str, float]:
        """MSE per pixel and Fréchet distance of reconstructed images (N, C, H, W) uint8, in memory or on storage."""
        features: list[Tensor] = []
        mse = reconstruction_error(
            model.reconstruct, images, model.device, lambda part: features.append(self.extractor(part))
        )
        return {"mse": mse, "fd": self.distance(torch.cat(features))}


class DrawJudge:
    """Judges draws of latents, and the images they decode to, draw by draw.

    Args:
        judge: of the images.
        model: decodes and whitens.
        held_out: encodings of the images that the judge compares with.
        noise: `(purpose, number of the draw)` -> generator on the model's device.
        count: latents of a draw.
        draws: how many draws.
    """

    def __init__(
        self,
        judge: Judge,
        model: LDCVAE,
        held_out: Encodings,
        noise: Callable[[str, int], torch.Generator],
        count: int,
        draws: int,
    ):
        self.judge, self.model, self.noise, self.count = judge, model, noise, count
        whiten = model.whitening.whiten
        self.truths = [whiten(held_out.draw(count, noise("truth", number))) for number in range(draws)]
        self.bandwidths = median_bandwidths(self.truths[0])

    @cached_property
    def _within(self) -> list[float]:
        # Once for all generators.
        return [mmd2_within(truth, self.bandwidths) for truth in self.truths]

    def each(self, draw: Draw, name: str, *nearest_to: tuple[str, Encodings]) -> Iterator[dict[str, float]]:
        """The figures of every draw.

        Args:
            draw: `(n, generator)` -> (n, d) latents.
            name: purpose of its noise.
            nearest_to: name -> encodings; adds `nearest_<name>`, the mean distance to the nearest of them.
        """
        timed_draw(
            draw, min(self.count, 200), self.noise("warm-up", 0)
        )  # the first call of a net pays for its set-up
        for number, truth in enumerate(self.truths):
            latents, rate = timed_draw(draw, self.count, self.noise(name, number))
            figures = self.judge.judged(decoded(self.model, latents))
            u = self.model.whitening.whiten(latents)
            figures["mmd2"] = mmd2(u, truth, self.bandwidths, within=self._within[number])
            figures["sliced_wasserstein"] = sliced_wasserstein(u, truth, generator=self.noise("slices", number))
            count = min(_NEAREST, len(u), *(len(part) for _, part in nearest_to))
            for other, part in nearest_to:
                noise = self.noise("nearest", number)
                some = part.mean[torch.randperm(len(part), generator=noise, device=noise.device)[:count]]
                figures[f"nearest_{other}"] = nearest_distance(u[:count], self.model.whitening.whiten(some))
            yield figures | {"latents_per_s": rate}
