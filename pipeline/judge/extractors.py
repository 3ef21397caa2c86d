"""Features that images are judged in: a classifier of the data's own labels, Inception, or random convolutions."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from ldcvae.model import as_float
from pipeline.store.data.shards import Images, load_split
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.remote.progress import Display
from pipeline.config.sections import EvaluateConfig, TrainConfig
from pipeline.store.manifest import Manifest
from pipeline.store.folder import Folder, sha256
from pipeline.store.data.splits import labelled_images
from ldcvae.training.world import keyed_generator

__all__ = ["Extractor", "build_extractor", "train_classifier"]

_CLASSIFIER = "evaluation/classifier"
_MEMORY_MB = TrainConfig().memory_mb


@dataclass(frozen=True)
class Extractor:
    """Image features and what to call a figure made of them.

    Attributes:
        name: classifier, inception or random.
        figure: name of the Frechet distance: FD-classifier, FD-random; FID for Inception only.
        sha256: of the weights.
        accuracy: of the classifier on test images, None for the others.
        network: (n, C, H, W) float in [0, 1] -> (n, k) features.
    """

    name: str
    figure: str
    sha256: str
    accuracy: float | None
    network: nn.Module

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 1000) -> Tensor:
        """Features (N, k) in float64 of images (N, C, H, W), uint8 or float in [0, 1]."""
        return torch.cat([self.network(as_float(part)).double() for part in images.split(batch_size)])

    def to(self, device: torch.device) -> "Extractor":
        """The same extractor on another device."""
        return replace(self, network=self.network.to(device))

    def describe(self) -> dict[str, Any]:
        """What `metrics.json` records of the extractor."""
        return {"name": self.name, "figure": self.figure, "sha256": self.sha256, "accuracy": self.accuracy}


def _convolutions(shape: tuple[int, int, int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels, side = shape[0], min(shape[1:])
    for width in (32, 64, 128):
        if side < 4:
            break
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, side = width, side // 2
    return [*layers, nn.AdaptiveAvgPool2d(min(side, 3)), nn.Flatten()]


def _classifier(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Small CNN whose features are the 64 ReLU activations before the last layer."""
    convolutions = nn.Sequential(*_convolutions(shape))
    with torch.no_grad():
        size = convolutions(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(convolutions, nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, classes))


def _accuracy(network: nn.Module, images: Images) -> float:
    with torch.no_grad():
        guesses = [network(as_float(part)).argmax(1) for part in images.pixels.split(1000)]
    return float((torch.cat(guesses) == images.labels).double().mean())


def train_classifier(train: Images, epochs: int, seed: int) -> nn.Sequential:
    """A classifier of the labelled training images.

    Args:
        train: images and labels; unlabelled ones (-1) are left out.
        epochs: passes over them.
        seed: of weights and order.

    Returns:
        The network in eval mode; without its last layer it is the feature extractor.
    """
    labelled = train.labels >= 0
    pixels, labels = train.pixels[labelled], train.labels[labelled]
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _classifier(shape, len(train.classes)).to(memory_format=torch.channels_last)
    batch = min(128, len(pixels))
    steps = len(pixels) // batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    display = Display("classifier")
    for epoch in range(epochs):
        display.update({"phase": "epochs", "done": epoch / epochs}, f"{epochs} epochs")
        order = torch.randperm(len(pixels), generator=keyed_generator("cpu", seed, "classifier", epoch))
        for index in order[: steps * batch].split(batch):
            images = as_float(pixels[index]).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(network(images), labels[index], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    display.close()
    return network.eval()


def _stored_classifier(run: Folder, config: EvaluateConfig, seed: int, data: Manifest, memory_mb: int) -> Extractor:
    """The run's classifier, trained once and kept with its accuracy and hash."""
    classes = data.info["classes"]
    if not classes:
        raise ConfigError(
            "evaluate.extractor: 'classifier' needs labels and this data set has none; use "
            "evaluate.extractor=inception, or evaluate.extractor=random"
        )
    made_of = {"data": data.digest, "seed": seed, "epochs": config.classifier_epochs, "memory_mb": memory_mb}
    kept = run.read_json(f"{_CLASSIFIER}.json") if run.exists(f"{_CLASSIFIER}.json") else {}
    if kept.get("made_of") != made_of:
        train = labelled_images(run, memory_mb, seed, "classifier")
        trained = train_classifier(train, config.classifier_epochs, seed)
        content = save({name: tensor.contiguous() for name, tensor in trained.state_dict().items()})
        accuracy = _accuracy(trained, load_split(run, "test"))
        kept = {"made_of": made_of, "accuracy": accuracy, "sha256": sha256(content)}
        run.write(f"{_CLASSIFIER}.safetensors", content)
        run.write_json(f"{_CLASSIFIER}.json", kept)
    # Always as stored: the trained one's memory format would give other last bits than a later process sees.
    network = _classifier(data.info["shape"], len(classes))
    network.load_state_dict(load(run.read_verified(f"{_CLASSIFIER}.safetensors", kept["sha256"])))
    network.eval()
    return Extractor("classifier", "FD-classifier", kept["sha256"], kept["accuracy"], network[:-1])


def _random(shape: tuple[int, int, int]) -> Extractor:
    """Untrained convolutions with a fixed seed: weaker than learnt features, but the same for everybody."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(*_convolutions(shape))
        with torch.no_grad():
            size = network(torch.zeros(1, *shape)).shape[1]
        network.append(nn.Linear(size, 64))
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return Extractor("random", "FD-random", digest.hexdigest(), None, network.eval())


class _Inception(nn.Module):
    """torch-fidelity's network takes uint8 with three channels and returns a tuple."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images * 255).round().to(torch.uint8)
        return self.network(pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels)[0]


def _inception(weights: str | None) -> Extractor:
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

    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return Extractor("inception", "FID", digest.hexdigest(), None, _Inception(network))


def build_extractor(
    run: Folder, config: EvaluateConfig, seed: int, data: Manifest, memory_mb: int = _MEMORY_MB
) -> Extractor:
    """The extractor that the config names.

    Args:
        run: the run's folder, where a classifier is kept.
        config: the `evaluate` section.
        seed: of the classifier.
        data: manifest of the data set.
        memory_mb: a classifier learns from this many MiB of training images at most.

    Raises:
        ConfigError: if the data have no labels, or Inception's package or weights are missing.
    """
    name = config.extractor
    if name == "auto":
        name = "classifier" if data.info["classes"] else "random"
    if name == "classifier":
        return _stored_classifier(run, config, seed, data, memory_mb)
    if name == "inception":
        return _inception(config.inception_weights)
    shape = data.info["shape"]
    return _random((shape[0], shape[1], shape[2]))
