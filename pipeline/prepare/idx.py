"""IDX files, as those of MNIST."""

import gzip
import zlib
from collections.abc import Sequence

import numpy as np

from pipeline.config.errors import PipelineError
from pipeline.config.sections import DataConfig
from pipeline.prepare.decode import Form, fit
from pipeline.prepare.raw import RawImages, classes_of
from pipeline.store.folder import Folder

__all__ = ["load_idx"]

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
