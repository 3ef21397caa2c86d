"""Data sets of torchvision, by class name: every one of single images that needs no argument but its folder."""

import difflib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.sections import DataConfig
from pipeline.prepare.decode import Form, progress, to_array
from pipeline.prepare.gather import Collector
from pipeline.prepare.raw import RawImages, classes_of

__all__ = ["load_torchvision", "torchvision_class"]

# What torchvision's classes call a split; the first that a class accepts counts.
_NAMES = {"train": ("train", "trainval"), "validation": ("val", "valid", "validation"), "test": ("test",)}


def _usable() -> dict[str, type]:
    from torchvision import datasets

    found = {}
    for name in datasets.__all__:
        kind = getattr(datasets, name)
        if inspect.isclass(kind):
            parameters = list(inspect.signature(kind).parameters.values())
            needed = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
            if needed == {"root"} and "transform" in {p.name for p in parameters} | _of_bases(kind):
                found[name] = kind
    return found


def _of_bases(kind: type) -> set[str]:
    """Arguments that a class hands on to its bases through **kwargs."""
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(kind).parameters.values()):
        return set()
    return {name for base in kind.__mro__[1:-1] for name in inspect.signature(base).parameters}


def torchvision_class(data: DataConfig) -> Any:
    """The class that `data.name` names.

    Raises:
        ConfigError: with the nearest names; or for a `data.path` that is no local folder.

    Example:
        >>> torchvision_class(DataConfig(source="torchvision", name="FashionMNST"))
        Traceback (most recent call last):
        pipeline.config.errors.ConfigError: data.name: torchvision has no usable set 'FashionMNST'; did you ...
    """
    known = _usable()
    if data.name in known:
        if data.path is not None and "://" in data.path:
            raise ConfigError(f"data.path={data.path}: torchvision keeps its files in a local folder only")
        return known[data.name]
    lower = {name.lower(): name for name in known}
    near = [lower[name] for name in difflib.get_close_matches(str(data.name).lower(), lower, n=3, cutoff=0.6)]
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    raise ConfigError(f"data.name: torchvision has no usable set {data.name!r}; {hint}")


def load_torchvision(data: DataConfig) -> RawImages:
    """A torchvision set, with its own test and validation splits where it has them.

    Labels are kept when they are integers. The files lie in `data.path`, by default `~/.cache/ldcvae`.

    Raises:
        PipelineError: when the files are missing and cannot be downloaded, or the set is not one of images.
    """
    kind = torchvision_class(data)
    root = Path(data.path or "~/.cache/ldcvae").expanduser()
    collector = Collector(data.on_bad_image, f"torchvision {data.name}")
    splits: list[str] = []
    values: list[int | None] = []
    class_names: list[str] | None = None
    for split, dataset in _open_splits(kind, root, data):
        class_names = class_names or _class_names(dataset)
        for index in progress(range(len(dataset)), len(dataset), f"{data.name} {split}"):
            name = f"{split} {index}"
            splits.append(split)
            values.append(None)
            try:
                item = dataset[index]
            except MemoryError as error:
                raise PipelineError(
                    f"torchvision {data.name} {name}: there is not enough memory to read it"
                ) from error
            except Exception as error:  # the decoders of torchvision's classes raise anything
                if isinstance(error, OSError) and error.errno is not None:  # the storage's, not a decoder's
                    raise PipelineError(f"torchvision {data.name} {name} cannot be read: {error}") from error
                collector.reject(name, str(error) or type(error).__name__)
                continue
            if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], Image.Image):
                raise PipelineError(f"torchvision {data.name} does not hold pairs of one image and its target")
            if isinstance(item[1], (int, np.integer)):
                values[-1] = int(item[1])
            collector.add(len(splits) - 1, name, to_array(item[0], Form.of(data)))
    images, kept = collector.finish()
    labels = [values[index] for index in kept]
    if class_names is not None and max((label for label in labels if label is not None), default=0) >= len(
        class_names
    ):
        class_names = None
    numbers, classes = classes_of(labels, class_names)
    return RawImages(images, numbers, np.array(splits)[kept], classes, tuple(collector.skipped))


def _class_names(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "classes", None)
    return [str(name) for name in names] if names else None


def _open_splits(kind: Any, root: Path, data: DataConfig) -> Iterator[tuple[str, Any]]:
    parameters = set(inspect.signature(kind).parameters) | _of_bases(kind)
    download = {"download": data.download} if "download" in parameters else {}
    if "train" in parameters:
        for split in ("train", "test"):
            yield split, _open(kind, root, data, {**download, "train": split == "train"})
    elif "split" in parameters:
        for split, names in _NAMES.items():
            for name in names:
                try:
                    dataset = _open(kind, root, data, {**download, "split": name})
                except _NoSuchSplit as error:
                    if split == "train" and name == names[-1]:
                        raise PipelineError(f"torchvision {data.name} has no training split: {error}") from None
                    continue
                yield split, dataset
                break
    else:
        yield "train", _open(kind, root, data, download)


class _NoSuchSplit(Exception):
    """The set has no split of that name; the message is torchvision's."""


def _open(kind: Any, root: Path, data: DataConfig, arguments: dict[str, Any]) -> Any:
    root.mkdir(parents=True, exist_ok=True)
    try:
        return kind(root=str(root), **arguments)
    except MemoryError as error:
        raise PipelineError(f"torchvision {data.name} in {root}: there is not enough memory to read it") from error
    except ValueError as error:
        if re.match(r"Unknown value .* for argument split\b", str(error)):  # of torchvision's verify_str_arg
            raise _NoSuchSplit(str(error)) from None
        raise PipelineError(f"torchvision {data.name} in {root} cannot be read: {error}") from error
    except Exception as error:  # no network, no files, a missing package: each class has its own kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        could = "could not be downloaded" if data.download else "is not complete there and data.download is false"
        raise PipelineError(
            f"torchvision {data.name} in {root}: {could} ({reason}). Either let this machine "
            f"reach the network with data.download=true, or copy the set's files from one that can into {root}, or "
            "point data.path at a folder that has them"
        ) from None
