"""Features that images are judged in: Inception, random convolutions, a file's; the classifier has its own module."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ldcvae.batches import Chunks, batches
from ldcvae.losses import as_float
from ldcvae.perceptual import load_features
from ldcvae.training.world import seeded_weights
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.variants import EXTRACTORS
from pipeline.store.folder import sha256
from pipeline.store.run import Run
from pipeline.store.weights import read_file

__all__ = [
    "Extractor",
    "as_extractor",
    "build_extractor",
    "from_file",
    "inception",
    "random_convolutions",
    "second_extractor",
    "small_convolutions",
]

_MOST = 1000  # images per pass


@dataclass(frozen=True)
class Extractor:
    """Image features and what to call a figure made of them.

    Attributes:
        name: of its record in `EXTRACTORS`.
        figure: name of the Fréchet distance in its features.
        sha256: of the weights.
        accuracy: of the classifier on test images, None for the others.
        network: (n, C, H, W) float in [0, 1] -> (n, k) features.
        files: what it has written under the run's folder.
    """

    name: str
    figure: str
    sha256: str
    accuracy: float | None
    network: nn.Module
    files: tuple[str, ...] = ()

    def __call__(self, images: Tensor | Chunks) -> Tensor:
        """Features (N, k) of images (N, C, H, W), uint8 or float in [0, 1], in memory or on storage; see `of`."""
        return self.of(batches(images, _MOST))

    @torch.no_grad()
    def of(self, parts: Iterable[Tensor]) -> Tensor:
        """Features (N, k) in float32 and on the CPU, of images that come in parts; one part at a time is held."""
        weight = next(self.network.parameters(), None)
        device = weight.device if weight is not None else None  # where there is no weight, where the images are
        return torch.cat([self.network(as_float(part.to(device))).float().cpu() for part in parts])

    def to(self, device: torch.device) -> "Extractor":
        """The same extractor on another device."""
        return replace(self, network=self.network.to(device))

    def describe(self) -> dict[str, Any]:
        """What `metrics.json` records of the extractor."""
        return {"name": self.name, "figure": self.figure, "sha256": self.sha256, "accuracy": self.accuracy}


def small_convolutions(shape: tuple[int, int, int]) -> list[nn.Module]:
    """Layers from images (n, C, H, W) of this shape to their features (n, k), with weights as torch draws them."""
    layers: list[nn.Module] = []
    channels, side = shape[0], min(shape[1:])
    for width in (32, 64, 128):
        if side < 4:
            break
        # The largest, then rectified: the same as the other way round, on a quarter of the numbers.
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        channels, side = width, side // 2
    return [*layers, nn.AdaptiveAvgPool2d(min(side, 3)), nn.Flatten()]


def as_extractor(
    name: str, digest: str, network: nn.Module, accuracy: float | None = None, files: tuple[str, ...] = ()
) -> Extractor:
    """The extractor of this name in `EXTRACTORS`, with the fields of `Extractor`."""
    # One memory format in every process, as others round otherwise; of those the fastest, by a third to a half.
    network = network.to(memory_format=torch.channels_last)
    return Extractor(name, EXTRACTORS[name].figure, digest, accuracy, network, files)


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def random_convolutions(run: Run) -> Extractor:
    """Untrained convolutions with a fixed seed: weaker than learnt features, but the same for everybody."""
    shape = run.shape
    with seeded_weights(0):
        network = nn.Sequential(*small_convolutions(shape))
        with torch.no_grad():
            size = network(torch.zeros(1, *shape)).shape[1]
        network.append(nn.Linear(size, 64))
    return as_extractor("random", _digest(network), network.eval())


class _Inception(nn.Module):
    """torch-fidelity's network takes uint8 with three channels and returns a tuple."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images * 255).round().to(torch.uint8)
        return self.network(pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels)[0]


def inception(run: Run) -> Extractor:
    """torch-fidelity's Inception, with weights of its own or from `evaluate.inception_weights`.

    Raises:
        ConfigError: if the package or the weights are missing.
        PipelineError: if the weights cannot be downloaded.
    """
    weights = run.config.evaluate.inception_weights
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ConfigError(
            "evaluate.extractor: 'inception' needs torch-fidelity: pip install 'ldcvae[inception]'"
        ) from None
    if weights is not None:
        # torch-fidelity unpickles what it is given: let torch's safe loader look first.
        try:
            torch.load(weights, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            raise ConfigError(f"evaluate.inception_weights: {weights} does not exist") from None
        except Exception as error:
            raise ConfigError(f"evaluate.inception_weights: {weights} is no plain tensor file: {error}") from None
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
    except OSError as error:
        raise PipelineError(
            f"Inception weights cannot be downloaded ({error}); give their path as evaluate.inception_weights=FILE"
        ) from error
    return as_extractor("inception", _digest(network), _Inception(network))


class _FromFile(nn.Module):
    """TorchScript, which cannot be pickled: it goes to another process as the file's content, on the CPU there."""

    def __init__(self, content: bytes):
        super().__init__()
        self.content, self.network = content, load_features(content)

    def __reduce__(self) -> tuple[type["_FromFile"], tuple[bytes]]:
        return _FromFile, (self.content,)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


def from_file(run: Run) -> Extractor:
    """A network of the user's own, as TorchScript at `evaluate.extractor_file`.

    It takes (n, C, H, W) float images in [0, 1] and returns (n, k) features; how it scales, enlarges or colours them
    is its own affair. The Fréchet distance is called FD-<the file's name>.

    Raises:
        ConfigError: if there is no such file, it is no TorchScript, or it does not return such features.
    """
    url = str(run.config.evaluate.extractor_file)
    content = read_file(url, "evaluate.extractor_file")
    try:
        network = _FromFile(content)
    except ValueError as error:
        raise ConfigError(f"evaluate.extractor_file: {url}: {error}") from None
    try:
        with torch.no_grad():
            features = network(torch.zeros(2, *run.shape))
        if not (isinstance(features, Tensor) and features.dim() == 2 and len(features) == 2):
            raise RuntimeError(f"it returned {tuple(getattr(features, 'shape', ())) or type(features).__name__}")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"evaluate.extractor_file: {url} does not turn images (2, {', '.join(map(str, run.shape))}) "
            f"into features (2, k): {reason}"
        ) from None
    name = url.rpartition("/")[2].removesuffix(".pt")
    return Extractor("file", f"FD-{name}", sha256(content), None, network)


def build_extractor(run: Run) -> Extractor:
    """The extractor that the run's configuration names.

    Raises:
        ConfigError: if the data have no labels, or Inception's package or weights are missing.
    """
    return EXTRACTORS.find(_first(run)).build(run)


def _first(run: Run) -> str:
    name: str = run.config.evaluate.extractor
    if name == "auto":
        return "classifier" if run.data.info["classes"] else "random"
    return name


def second_extractor(run: Run) -> Extractor | None:
    """The other extractor, `evaluate.second_extractor`, or None; a ConfigError if it is the first one again."""
    name = run.config.evaluate.second_extractor
    if name == _first(run):
        raise ConfigError(f"evaluate.second_extractor: {name} is what the first is here, and says nothing more")
    return None if name == "none" else EXTRACTORS.find(name).build(run)
