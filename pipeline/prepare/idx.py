"""Read what a source holds: each reader brings its files to the same form, `RawImages`."""

import gzip
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.prepare.gather import Collector
from pipeline.config.load import Config
from pipeline.config.errors import PipelineError
from pipeline.prepare.decode import Form, decode_files, fit
from pipeline.config.sections import DataConfig
from pipeline.store.folder import Folder

__all__ = ["RawImages", "classes_of", "load_digits", "load_folder", "load_idx", "split_of_name"]

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


class RawImages(NamedTuple):
    """All images of a source.

    Attributes:
        images: (N, C, H, W) uint8, after resizing and channel conversion; many of them lie in a temporary file.
        labels: (N,) int64, -1 where there is none; None without labels.
        splits: (N,) "train", "validation" or "test" as the source has it; "train" is what may be cut further.
        classes: names of labels 0, 1, …; empty without labels.
        skipped: `{"file", "reason"}` of what was left out.
    """

    images: np.ndarray
    labels: np.ndarray | None
    splits: np.ndarray
    classes: tuple[str, ...]
    skipped: tuple[dict[str, str], ...] = ()


def split_of_name(name: str) -> str | None:
    """The split that a word names, or None.

    Example:
        >>> split_of_name("Val"), split_of_name("cats")
        ('validation', None)
    """
    return _SPLITS.get(name.lower())


def classes_of(
    values: Sequence[int | str | None], names: Sequence[str] | None = None
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels as 0, 1, … and the names of the classes.

    Args:
        values: one per image; integers or strings, None where there is no label.
        names: of the integers 0, 1, …, where known; else classes are the distinct values in order.

    Raises:
        ValueError: if an integer has no name in `names`.

    Example:
        >>> classes_of(["dog", None, "cat"])
        (array([ 1, -1,  0]), ('cat', 'dog'))
    """
    present: list[Any] = sorted({value for value in values if value is not None})
    if not present:
        return None, ()
    if names is not None:
        if not 0 <= present[0] <= present[-1] < len(names):
            raise ValueError(f"labels run from {present[0]} to {present[-1]}, but there are {len(names)} class names")
        present = list(range(len(names)))
    number = {value: index for index, value in enumerate(present)} | {None: -1}
    labels = np.array([number[value] for value in values], np.int64)
    return labels, tuple(str(value) for value in (names if names is not None else present))


def load_digits(data: DataConfig) -> RawImages:
    """Scikit-learn's bundled digits: 1,797 scans of 8x8."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # scans hold 0 to 16
    splits = np.full(len(images), "train")
    labels = digits.target.astype(np.int64)
    return RawImages(fit(images, Form.of(data)), labels, splits, tuple("0123456789"))


def load_folder(config: Config, folder: Folder, names: list[str]) -> RawImages:
    """PNG and JPEG files.

    Top-level folders `train`, `validation` (or `val`) and `test` are splits if `train` is there and at least one
    other, or nothing else; then files outside them are left out and listed. The next folder is the label.
    """
    top = {name.split("/")[0] for name in names if "/" in name}
    found = {split for name in top if (split := split_of_name(name)) is not None}
    has_splits = "train" in found and (len(found) > 1 or len(top) == 1)
    collector = Collector(config.data.on_bad_image, folder.url)
    splits: list[str] = []
    values: list[str | None] = []
    used: list[str] = []
    for name in names:
        *folders, _ = name.split("/")
        split = "train"
        if has_splits:
            named = split_of_name(folders.pop(0)) if folders else None
            if named is None:
                collector.skipped.append({"file": name, "reason": f"outside the split folders {sorted(found)}"})
                continue
            split = named
        used.append(name)
        splits.append(split)
        values.append(folders[0] if folders else None)
    for index, result in decode_files(config, folder, used):
        if isinstance(result, str):
            collector.reject(used[index], result)
        else:
            collector.add(index, used[index], result)
    images, kept = collector.finish()
    labels, classes = classes_of([values[index] for index in kept])
    skipped = sorted(collector.skipped, key=lambda entry: entry["file"])
    return RawImages(images, labels, np.array(splits)[kept], classes, tuple(skipped))


_IDX = {"train": ("train-images", "train-labels"), "test": ("t10k-images", "t10k-labels")}


def load_idx(data: DataConfig, folder: Folder, names: Sequence[str]) -> RawImages:
    """MNIST's files, gzipped or not; without `t10k-*` there is no test split, without `*-labels` there are no labels.

    A file `classes.txt` holds the names of labels 0, 1, …, one a line.

    Raises:
        PipelineError: naming a file whose magic number, dimensions or length are wrong.
    """
    images: list[np.ndarray] = []
    values: list[int | None] = []
    splits: list[str] = []
    for split, (image_stem, label_stem) in _IDX.items():
        image_name, label_name = _idx_name(names, image_stem, 3), _idx_name(names, label_stem, 1)
        if image_name is None:
            continue
        pixels = _read_idx(folder, image_name, 3)
        if images and images[0].shape[2:] != pixels.shape[1:]:
            raise PipelineError(
                f"{folder.url}/{image_name}: images are {pixels.shape[1:]}, the training images {images[0].shape[2:]}"
            )
        images.append(pixels[:, None])
        splits += [split] * len(pixels)
        if label_name is None:
            values += [None] * len(pixels)
            continue
        labels = _read_idx(folder, label_name, 1)
        if len(labels) != len(pixels):
            raise PipelineError(
                f"{folder.url}/{label_name} has {len(labels):,} labels, {image_name} has {len(pixels):,} images"
            )
        values += labels.tolist()
    if not splits or splits[0] != "train":
        raise PipelineError(f"{folder.url} has no train-images-idx3-ubyte or train-images-idx3-ubyte.gz")
    class_names = None
    if "classes.txt" in names:
        class_names = folder.read("classes.txt").decode("utf-8", "replace").split("\n")
        class_names = [name.strip() for name in class_names if name.strip()]
    try:
        label_numbers, classes = classes_of(values, class_names)
    except ValueError as error:
        raise PipelineError(f"{folder.url}/classes.txt: {error}") from None
    pixels = fit(np.concatenate(images), Form.of(data))
    return RawImages(pixels, label_numbers, np.array(splits), classes)


def _idx_name(names: Sequence[str], stem: str, dimensions: int) -> str | None:
    # Some mirrors write train-images.idx3-ubyte.
    wanted = [f"{stem}{mark}idx{dimensions}-ubyte{ending}" for ending in ("", ".gz") for mark in "-."]
    return next((name for name in wanted if name in names), None)


def _read_idx(folder: Folder, name: str, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes: magic 0x08 and the number of dimensions, the dimensions, the bytes."""
    content = folder.read(name)
    if name.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise PipelineError(f"{folder.url}/{name} is damaged: {error}") from None
    header = 4 + 4 * dimensions
    magic = content[:4]
    if magic != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise PipelineError(
            f"{folder.url}/{name} is no IDX file of {dimensions} dimensions: it starts with 0x{magic.hex()}, "
            f"not 0x0000080{dimensions}"
        )
    shape = tuple(int(side) for side in np.frombuffer(content, ">u4", dimensions, offset=4))
    size = 1
    for side in shape:
        size *= side  # Python's integers: a damaged header must not overflow
    if size != len(content) - header or size == 0:
        raise PipelineError(
            f"{folder.url}/{name} is damaged: its header says {shape}, {size:,} bytes, but {len(content) - header:,} "
            "follow"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
