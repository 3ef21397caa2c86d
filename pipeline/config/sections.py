"""The one schema: every key a run understands, with type, default, bounds, unit and meaning.

The defaults are those of the bundled digits (`configs/digits.yaml` spells them out), so a run with no config
file works.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ldcvae.registry import OneOf
from ldcvae.training.settings import AutoencoderSettings, Count, DecoderSettings, SamplerSettings
from ldcvae.variants import GENERATORS, NETWORKS
from pipeline.config.base import Section, one_of
from pipeline.config.compare import CompareConfig
from pipeline.config.tune import TuneConfig
from pipeline.config.variants import EXTRACTORS, SOURCES

__all__ = [
    "CompareConfig",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "EvaluateConfig",
    "ModelConfig",
    "RayConfig",
    "ReportConfig",
    "SampleConfig",
    "SamplerConfig",
    "TrainConfig",
    "TuneConfig",
]


def _workers(value: Any) -> Any:
    numbers = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(type(number) is int for number in numbers) or not 1 <= numbers[0] <= numbers[1]:
        raise ValueError("must be a number from 1 up, or [least, most]")
    return value


Workers = Annotated[int | list[int], BeforeValidator(_workers)]


class DataConfig(Section):
    """Where the images come from and how they are cut up."""

    source: Annotated[str, OneOf(SOURCES)] = Field(
        "digits", description="; ".join(f"{source.name}: {source.about}" for source in SOURCES.values())
    )
    name: str | None = Field(None, description="torchvision class, e.g. MNIST, CIFAR10 (source torchvision)")
    path: str | None = Field(None, description="folder or fsspec URL of the source; for torchvision its cache")
    download: bool = Field(True, description="let torchvision download when the files are missing")
    crop: Annotated[int, Field(ge=4, le=8192)] | None = Field(
        None, description="keep the centred square of this many pixels (at most the shorter side) before resizing"
    )
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = Field(
        None, description="resize the shorter side to this many pixels and centre-crop; null keeps the size"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 RGB; null keeps what the source has")
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = Field(
        0.1, description="part of the training images held out to choose by"
    )
    test_fraction: Annotated[float, Field(gt=0, lt=0.9)] = Field(
        0.2,
        description="part of all images held out to report on, when the source has no test split; below 1 together "
        "with validation_fraction",
    )
    max_train_images: Count | None = Field(None, description="use only this many training images; null: all")
    images_per_shard: Count | None = Field(
        10_000, description="rows of one Parquet file, of 128 MiB of pixels at most; null: as many as that holds"
    )
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="fail: stop and name the file; skip: leave it out and list it in the manifest"
    )

    def conflict(self) -> str:
        """What the source needs and has not been given."""
        needs = SOURCES[self.source].needs
        if needs is not None and getattr(self, needs[0]) is None:
            return f"{needs[0]} is missing: source {self.source!r} needs {needs[1]}"
        return ""


class ModelConfig(Section):
    """The networks."""

    network: Annotated[str, OneOf(NETWORKS, "auto")] = Field(
        "auto",
        description="encoder and decoder; auto: mlp below 16 pixels, conv up to 32, resnet above; spatial: latents "
        "keep the image's plane, d is a multiple of 64 for 32x32 and larger squares",
    )
    latent_dim: Annotated[int, Field(ge=1, le=4096)] = Field(8, description="d, dimensions of a latent")
    width: Count = Field(128, description="hidden units (mlp) or channels of the first level (the others)")
    depth: Count = Field(
        2, description="hidden layers (mlp, conv), residual blocks a level (resnet) or beside the latents (spatial)"
    )
    likelihood: Literal["gaussian", "bernoulli"] = Field(
        "gaussian",
        description="reconstruction loss l(x, z): squared error or cross-entropy, summed over pixels",
    )
    upsample: Literal["transposed", "nearest"] = Field(
        "transposed",
        description="how convolutional decoders double the size: transposed convolutions, which may leave a "
        "grid, or nearest neighbour and a convolution",
    )

    later = frozenset({"upsample"})


class TrainConfig(Section, AutoencoderSettings):
    """Phase 1: encoder and decoder."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {"num_workers", "device", "checkpoint_epochs", "checkpoint_steps", "keep_checkpoints", "max_failures"}
    )
    """Keys that change how a training is carried out, not what it computes: it goes on with other values."""

    memory_mb: Annotated[int, Field(ge=0)] = Field(4096, description="MiB of a split held; more is streamed")
    num_workers: Workers = Field(
        1, description="data-parallel processes; [least, most]: as many as the cluster has room for, changing with it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="of sampling and judging too; auto: cuda where the cluster or machine has GPUs"
    )
    checkpoint_epochs: Count = Field(25, description="epochs between checkpoints of phases 1 and decoder")
    checkpoint_steps: Count | None = Field(None, description="steps between checkpoints within an epoch; null: none")
    keep_checkpoints: Count = Field(2, description="how many of the newest checkpoints stay on storage")
    max_failures: Annotated[int, Field(ge=0)] = Field(3, description="lost workers before the run gives up")

    def conflict(self) -> str:
        """What `AutoencoderSettings` refuses, and checkpoints that could not be gone on from."""
        if self.checkpoint_steps is not None and self.consistency > 0:
            return "checkpoint_steps and consistency do not go together: its energy is made at an epoch's start only"
        return AutoencoderSettings.conflict(self)

    @property
    def least_workers(self) -> int:
        """The fewest data-parallel processes that training goes on with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The most data-parallel processes."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class DecoderConfig(Section, DecoderSettings):
    """Between the phases: the decoder trained on against a discriminator, on frozen encodings."""


class SamplerConfig(Section, SamplerSettings):
    """Phase 2: the net that draws latents in one forward pass."""

    later = frozenset({"base_centres", "base_spread"})


class SampleConfig(Section):
    """Generated images."""

    num_images: Count = Field(2000, description="how many images to generate")
    batch_size: Count = Field(500, description="images per forward pass; part of what the seed fixes")
    num_workers: Count = Field(1, description="parallel processes; any number gives the same images")
    png: bool = Field(False, description="also write each image as samples/png/NNNNNN.png")
    grid: Annotated[int, Field(ge=1, le=32)] = Field(10, description="images per side of grid.png")
    temperature: Annotated[float, Field(gt=0, le=4)] = Field(
        1.0,
        description="standard deviation of the sampler net's base about its centres, as a factor, when images are "
        "drawn, or judged by evaluate or tune: above 1 more various, below 1 more typical ones; training has 1, "
        "compare its own",
    )

    later = frozenset({"temperature"})


class EvaluateConfig(Section):
    """Figures of merit."""

    later = frozenset({"extractor_file", "second_extractor", "chain_kernels"})

    split: Literal["validation", "test"] = Field("test", description="choose on validation, report on test")
    extractor: Annotated[str, OneOf(EXTRACTORS, "auto")] = Field(
        "auto",
        description="features of the Frechet distance; auto: classifier where there are labels, else random",
    )
    inception_weights: str | None = Field(None, description="path of Inception weights; null: torch-fidelity's own")
    extractor_file: str | None = Field(
        None,
        description="for extractor file: path or URL of a TorchScript network, images in [0, 1] -> features",
    )
    second_extractor: Annotated[str, OneOf(EXTRACTORS, "none")] = Field(
        "none", description="another Frechet distance, in other features, beside each: one network is one view"
    )
    generators: list[one_of(GENERATORS)] = Field(  # type: ignore[valid-type]
        ["prior", "gaussian", "gmm", "langevin", "sampler", "encoder"],
        min_length=1,
        description="latents judged",
    )
    num_images: Annotated[int, Field(ge=50)] = Field(2000, description="images per draw of a generator")
    draws: Count = Field(5, description="independent draws of every generator: mean and spread")
    neighbours: Count = Field(5, description="k of precision, recall, density, coverage")
    gmm_components: Count = Field(10, description="components of generator gmm")
    langevin_steps: Annotated[int, Field(ge=12)] = Field(
        120, description="steps of annealed Langevin, burn-in included"
    )
    chain_kernels: Count | None = Field(
        4096, description="encodings whose density the chains walk, a random choice; null: all, at so much more time"
    )
    classifier_epochs: Count = Field(30, description="epochs of the feature classifier")

    def conflict(self) -> str:
        """Generators that are trained elsewhere, and an extractor without its file."""
        if ("file" in (self.extractor, self.second_extractor)) != (self.extractor_file is not None):
            return "extractor_file: extractor=file and extractor_file=PATH go together"
        if self.second_extractor == self.extractor:
            return f"second_extractor: is {self.extractor} too, and says nothing more"
        for name in self.generators:
            if "evaluate" not in GENERATORS[name].stages:
                return f"generators: {name} is a net that `compare` trains; `evaluate` judges the run's own, sampler"
        return ""


class ReportConfig(Section):
    """The page."""

    title: str | None = Field(None, description="headline; null: the run's name")
    images: Annotated[int, Field(ge=4, le=400)] = Field(100, description="images in the sample grid")


class RayConfig(Section):
    """How to reach or start Ray."""

    address: str | None = Field(None, description="cluster to join; null: the job's own, or a new local one")
    num_cpus: Count | None = Field(None, description="CPUs of a local start; null: all")
    num_gpus: Annotated[int, Field(ge=0)] | None = Field(None, description="GPUs of a local start; null: all")
    object_store_mb: Annotated[int, Field(ge=80)] = Field(200, description="object store of a local start, MiB")
    dashboard: bool = Field(False, description="dashboard of a local start, on loopback")


def _no_separator(name: str) -> str:
    if isinstance(name, bool | int | float):
        raise ValueError("must be text, and YAML reads this as something else; quote it twice: name='\"…\"'")
    if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\?#\0"):
        raise ValueError("must be a plain folder name, without / \\ ? #")
    return name


class Config(Section):
    """A whole run."""

    name: Annotated[str, BeforeValidator(_no_separator)] = Field("digits", description="folder of the run")
    storage: str = Field("runs", description="folder or fsspec URL that holds runs, e.g. s3://bucket/runs")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of splits, weights, noise and samples")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    decoder: DecoderConfig = DecoderConfig()
    sampler: SamplerConfig = SamplerConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tune: TuneConfig = TuneConfig()
    compare: CompareConfig = CompareConfig()
    report: ReportConfig = ReportConfig()
    ray: RayConfig = RayConfig()
