"""The feature classifier: learnt from the labels of the data, and kept with its accuracy and hash."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional

from ldcvae.batches import batches, rows_at_a_time
from ldcvae.losses import as_float
from ldcvae.training.world import keyed_generator, seeded_weights
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.judge.extractors import Extractor, as_extractor, small_convolutions
from pipeline.remote.device import process_device
from pipeline.remote.progress import Display
from pipeline.store.data.shards import Images
from pipeline.store.data.splits import labelled_images
from pipeline.store.data.stored import StoredSplit
from pipeline.store.folder import fingerprint, sha256
from pipeline.store.manifest import at_format, say
from pipeline.store.run import Run
from pipeline.store.schema import Classifier, parse_as

__all__ = ["stored_classifier", "train_classifier"]

# Of the classifier that is kept; CONTRIBUTING.md says when to raise it. It is trained again when it is next needed,
# so raise the numbers of the stages that judge by it too, or they stay up to date by the old one.
CLASSIFIER_FORMAT = 1

_CLASSIFIER = "evaluation/classifier"
_MOST = 1000  # images per pass


def _classifier(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Small CNN whose features are the 64 ReLU activations before the last layer."""
    convolutions = nn.Sequential(*small_convolutions(shape))
    with torch.no_grad():
        size = convolutions(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(convolutions, nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, classes))


@torch.no_grad()
def _accuracy(network: nn.Module, images: StoredSplit) -> float | None:
    """Share of the labelled images whose label is guessed; None where none has one."""
    device, right, count = next(network.parameters()).device, 0, 0
    for pixels, labels in images.read_each(images.groups):
        parts = batches(torch.from_numpy(pixels.copy()), _MOST)  # Arrow's memory is read-only
        guesses = torch.cat([network(as_float(part.to(device))).argmax(1).cpu() for part in parts])
        right += int((guesses == torch.from_numpy(labels.copy())).sum())
        count += int((labels >= 0).sum())
    return right / count if count else None


def train_classifier(train: Images, epochs: int, seed: int, device: torch.device | str = "cpu") -> nn.Sequential:
    """A classifier of the labelled training images.

    Args:
        train: images and labels, on the CPU; unlabelled ones (-1) are left out.
        epochs: passes over them.
        seed: of first weights and order, which are the same on every device.
        device: where it learns.

    Returns:
        The network there, in eval mode; without its last layer it is the feature extractor.

    Raises:
        ConfigError: if no image has a label.
    """
    pixels, labels = train.pixels, train.labels
    labelled = (labels >= 0).nonzero().squeeze(1)
    if not len(labelled):
        raise ConfigError(
            "evaluate.extractor: 'classifier' learns from labels of training images, and none has one; use "
            "evaluate.extractor=inception, or evaluate.extractor=random"
        )
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


def _kept(run: Run, made_of: dict[str, object], classes: int) -> tuple[str, Extractor | None]:
    """(name of the files, the classifier in them if it is made of this and whole)."""
    folder = run.folder
    # A comparison or a search with other settings keeps its own beside that of a finished evaluation.
    for stem in (_CLASSIFIER, f"{_CLASSIFIER}-{fingerprint(made_of)[:12]}"):
        if not folder.exists(f"{stem}.json"):
            break
        try:
            kept = parse_as(Classifier, folder.read(f"{stem}.json"), f"{folder.url}/{stem}.json", "")
            if kept["made_of"] != made_of:
                continue
            weights = load(folder.read_verified(f"{stem}.safetensors", kept["sha256"]))
            network = _classifier(run.shape, classes)
            network.load_state_dict(weights)
        except (PipelineError, SafetensorError, RuntimeError) as error:
            say(f"classifier: {error}: it is trained again")
            break
        files = (f"{stem}.json", f"{stem}.safetensors")
        network.eval()
        return stem, as_extractor("classifier", kept["sha256"], network[:-1], kept["accuracy"], files)
    return stem, None


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
    stem, found = _kept(run, made_of, len(classes))
    if found is not None:
        return found
    train = labelled_images(run, config.seed, "classifier")
    trained = train_classifier(train, config.evaluate.classifier_epochs, config.seed, process_device(config))
    content = save({name: tensor.cpu().contiguous() for name, tensor in trained.state_dict().items()})
    accuracy = _accuracy(trained, StoredSplit(run, "test"))
    folder.write(f"{stem}.safetensors", content)
    folder.write_json(f"{stem}.json", {"made_of": made_of, "accuracy": accuracy, "sha256": sha256(content)})
    # As stored: the trained one's memory format would give other last bits than a later process sees.
    _, found = _kept(run, made_of, len(classes))
    if found is None:
        raise PipelineError(f"{folder.url}/{stem}.safetensors cannot be read again after it was written")
    return found
