"""Gathers decoded images into one array: in memory, or beyond a size in temporary files, which need not fit."""

import math
import tempfile
from typing import NamedTuple

import numpy as np

from pipeline.config.errors import PipelineError

__all__ = ["IN_MEMORY", "Collector", "FirstImage"]

IN_MEMORY = 2**30
"""Bytes of images from which on they lie in temporary files ($TMPDIR), not in memory."""

_BLOCK = 2**26  # bytes of such a file, gone when its images are


def _on_disk(size: int) -> np.ndarray:
    """(size,) uint8 in a temporary file that goes with the array."""
    return np.memmap(tempfile.TemporaryFile(prefix="ldcvae-"), np.uint8, "w+", shape=(size,)).view(np.ndarray)


class FirstImage(NamedTuple):
    """The image that all others must be as large as: its name, height and width."""

    name: str
    height: int
    width: int

    def check(self, root: str, name: str, image: np.ndarray) -> None:
        """Refuse an image (C, H, W) of the folder `root` that is of another size.

        Raises:
            PipelineError: naming both.
        """
        _, height, width = image.shape
        if (height, width) != self[1:]:
            raise PipelineError(
                f"images of {root}/ differ in size: {self.name} is {self.width}x{self.height} pixels, "
                f"{name} is {width}x{height}; "
                f"set data.image_size, e.g. data.image_size={min(64, max(4, min(self[1:])))}"
            )


class Collector:
    """Gathers decoded images, in any order, into one array; counts or refuses the bad ones.

    Args:
        on_bad_image: "fail" or "skip".
        root: folder or set of the names, for error messages.

    Attributes:
        skipped: `{"file", "reason"}` of every image left out.

    Example:
        >>> collector = Collector("skip", "pictures")
        >>> collector.add(1, "b.png", np.zeros((3, 8, 8), np.uint8))
        >>> collector.add(0, "a.png", np.zeros((1, 8, 8), np.uint8))
        >>> collector.reject("c.png", "not an image")
        >>> images, indices = collector.finish()
        >>> images.shape, indices.tolist()
        ((2, 3, 8, 8), [0, 1])
    """

    def __init__(self, on_bad_image: str, root: str) -> None:
        self._on_bad_image = on_bad_image
        self._root = root
        self._images: dict[int, np.ndarray] = {}
        self._first: FirstImage | None = None
        self._bytes = 0
        self._room = np.empty(0, np.uint8)  # what is left of the newest file
        self.skipped: list[dict[str, str]] = []

    def add(self, index: int, name: str, image: np.ndarray) -> None:
        """Take image number `index`: (C, H, W) uint8.

        Raises:
            PipelineError: if its height or width is not that of the others.
        """
        if self._first is None:
            self._first = FirstImage(name, *image.shape[1:])
        self._first.check(self._root, name, image)
        self._bytes += image.nbytes
        self._images[index] = image if self._bytes <= IN_MEMORY else self._put_away(image)

    def _put_away(self, image: np.ndarray) -> np.ndarray:
        if len(self._room) < image.nbytes:
            self._room = _on_disk(max(_BLOCK, image.nbytes))
        place, self._room = self._room[: image.nbytes], self._room[image.nbytes :]
        place[:] = image.reshape(-1)
        return place.reshape(image.shape)

    def reject(self, name: str, reason: str) -> None:
        """Leave out a bad image.

        Raises:
            PipelineError: naming it, if bad images are to stop the run.
        """
        if self._on_bad_image == "fail":
            raise PipelineError(
                f"{self._root}/{name}: {reason}; data.on_bad_image=skip leaves such files out and lists them"
            )
        self.skipped.append({"file": name, "reason": reason})

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, C, H, W) uint8 in order of index, and the (N,) indices; C is 1 when all are grey, else 3.

        Raises:
            PipelineError: if there is none.
        """
        if not self._images:
            first = f"; {self.skipped[0]['file']}: {self.skipped[0]['reason']}" if self.skipped else ""
            raise PipelineError(f"{self._root}/ has no readable image, {len(self.skipped):,} bad ones{first}")
        indices = sorted(self._images)
        channels = max(image.shape[0] for image in self._images.values())
        shape = (len(indices), channels, *self._images[indices[0]].shape[1:])
        size = math.prod(shape)
        images = (np.empty(size, np.uint8) if size <= IN_MEMORY else _on_disk(size)).reshape(shape)
        self._room = np.empty(0, np.uint8)
        for row, index in enumerate(indices):
            images[row] = self._images.pop(index)  # frees as it copies; grey broadcasts to RGB
        return images, np.array(indices)
