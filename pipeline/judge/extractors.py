"""Features that images are judged in: a classifier of the data's own labels, Inception, or random convolutions."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from ldcvae.batches import Chunks, batches, rows_at_a_time
from ldcvae.losses import as_float
from ldcvae.perceptual import load_features
from ldcvae.training.world import keyed_generator, seeded_weights
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.variants import EXTRACTORS
from pipeline.remote.device import process_device
from pipeline.remote.progress import Display
from pipeline.store.data.shards import Images
from pipeline.store.data.splits import labelled_images
from pipeline.store.data.stored import StoredSplit
from pipeline.store.folder import read_file, sha256
from pipeline.store.manifest import at_format
from pipeline.store.run import Run
from pipeline.store.schema import Classifier, parse_as

__all__ = [
    "Extractor",
    "build_extractor",
    "from_file",
    "inception",
    "random_convolutions",
    "second_extractor",
    "stored_classifier",
    "train_classifier",
]

# Of the classifier that is kept; CONTRIBUTING.md says when to raise it. It is trained again when it is next needed,
# so raise the numbers of the stages that judge by it too, or they stay up to date by the old one.
CLASSIFIER_FORMAT = 1

_CLASSIFIER = "evaluation/classifier"
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


def _convolutions(shape: tuple[int, int, int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels, side = shape[0], min(shape[1:])
    for width in (32, 64, 128):
        if side < 4:
            break
        # The largest, then rectified: the same as the other way round, on a quarter of the numbers.
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        channels, side = width, side // 2
    return [*layers, nn.AdaptiveAvgPool2d(min(side, 3)), nn.Flatten()]


def _classifier(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Small CNN whose features are the 64 ReLU activations before the last layer."""
    convolutions = nn.Sequential(*_convolutions(shape))
    with torch.no_grad():
        size = convolutions(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(convolutions, nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, classes))


@torch.no_grad()
def _accuracy(network: nn.Module, images: StoredSplit) -> float:
    device, right = next(network.parameters()).device, 0
    for pixels, labels in images.read_each(images.groups):
        parts = batches(torch.from_numpy(pixels.copy()), _MOST)  # Arrow's memory is read-only
        guesses = torch.cat([network(as_float(part.to(device))).argmax(1).cpu() for part in parts])
        right += int((guesses == torch.from_numpy(labels.copy())).sum())
    return right / len(images)


def train_classifier(train: Images, epochs: int, seed: int, device: torch.device | str = "cpu") -> nn.Sequential:
    """A classifier of the labelled training images.

    Args:
        train: images and labels, on the CPU; unlabelled ones (-1) are left out.
        epochs: passes over them.
        seed: of first weights and order, which are the same on every device.
        device: where it learns.

    Returns:
        The network there, in eval mode; without its last layer it is the feature extractor.
    """
    pixels, labels = train.pixels, train.labels
    labelled = (labels >= 0).nonzero().squeeze(1)
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    with seeded_weights(seed):
        network = _classifier(shape, len(train.classes)).to(device).to(memory_format=torch.channels_last)
    batch = min(128, len(labelled))
    steps = len(labelled) // batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    display = Display("classifier")
    for epoch in range(epochs):
        display.update({"phase": "epochs", "done": epoch / epochs}, f"{epochs} epochs")
        order = torch.randperm(len(labelled), generator=keyed_generator("cpu", seed, "classifier", epoch))
        for index in labelled[order[: steps * batch]].split(batch):
            optimizer.zero_grad(set_to_none=True)
            for part in index.split(rows_at_a_time(shape, batch)):
                images = as_float(pixels[part].to(device)).contiguous(memory_format=torch.channels_last)
                loss = functional.cross_entropy(network(images), labels[part].to(device), label_smoothing=0.05)
                (loss * (len(part) / batch)).backward()
            optimizer.step()
            schedule.step()
    display.close()
    return network.eval()


def stored_classifier(run: Run) -> Extractor:
    """The run's classifier on the CPU, trained once on this process's device and kept with its accuracy and hash.

    Raises:
        ConfigError: if the data have no labels.
    """
    config, folder, data = run.config, run.folder, run.data
    classes = data.info["classes"]
    if not classes:
        raise ConfigError(
            "evaluate.extractor: 'classifier' needs labels and this data set has none; use "
            "evaluate.extractor=inception, or evaluate.extractor=random"
        )
    made_of = {
        "data": data.digest,
        "seed": config.seed,
        "epochs": config.evaluate.classifier_epochs,
        "memory_mb": config.train.memory_mb,
    }
    made_of = at_format(made_of, CLASSIFIER_FORMAT)
    name, kept = f"{_CLASSIFIER}.json", {}
    if folder.exists(name):
        remedy = "delete it, and the classifier is trained again"
        kept = parse_as(Classifier, folder.read(name), f"{folder.url}/{name}", remedy)
    if kept.get("made_of") != made_of:
        train = labelled_images(run, config.seed, "classifier")
        trained = train_classifier(train, config.evaluate.classifier_epochs, config.seed, process_device(config))
        content = save({name: tensor.cpu().contiguous() for name, tensor in trained.state_dict().items()})
        accuracy = _accuracy(trained, StoredSplit(run, "test"))
        kept = {"made_of": made_of, "accuracy": accuracy, "sha256": sha256(content)}
        folder.write(f"{_CLASSIFIER}.safetensors", content)
        folder.write_json(name, kept)
    # Always as stored: the trained one's memory format would give other last bits than a later process sees.
    network = _classifier(run.shape, len(classes))
    network.load_state_dict(load(folder.read_verified(f"{_CLASSIFIER}.safetensors", kept["sha256"])))
    network.eval()
    files = (name, f"{_CLASSIFIER}.safetensors")
    return _extractor("classifier", kept["sha256"], network[:-1], kept["accuracy"], files)


def _extractor(
    name: str, digest: str, network: nn.Module, accuracy: float | None = None, files: tuple[str, ...] = ()
) -> Extractor:
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
        network = nn.Sequential(*_convolutions(shape))
        with torch.no_grad():
            size = network(torch.zeros(1, *shape)).shape[1]
        network.append(nn.Linear(size, 64))
    return _extractor("random", _digest(network), network.eval())


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
    return _extractor("inception", _digest(network), _Inception(network))


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
        network = load_features(content)
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
