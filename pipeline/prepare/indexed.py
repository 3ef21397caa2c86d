"""Images whose labels and splits are known and whose pixels still lie on storage, read part by part."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pipeline.config.errors import PipelineError
from pipeline.prepare.decode import progress
from pipeline.prepare.gather import Collector
from pipeline.prepare.raw import RawImages, classes_of

__all__ = ["READERS", "IndexedImages", "collect", "merge_skipped", "read_ahead"]

READERS = 8
"""Threads that wait for storage at the same time in one process."""

S = TypeVar("S")
T = TypeVar("T")


class IndexedImages(NamedTuple):
    """The images of a source as they lie on storage.

    Attributes:
        parts: what is read as a whole: a file, or a row group.
        rows: (len(parts),) images in each.
        read: some of the parts -> of each of their images, in order, the name, and the (C, H, W) uint8 pixels or the
            reason why there are none. Can be pickled; raises PipelineError.
        codes: (N,) the labels as positions in `values`, -1 where there is none.
        values: every label that occurs, once.
        splits: (N,) objects "train", "validation" or "test" as the source has it.
        root: URL, for messages.
        large: whether it is worth the start of Ray to read them in tasks.
        names: of the labels 0, 1, …, where they are known.
        skipped: `{"file", "reason"}` of what was left out already, in the source's order.
    """

    parts: Sequence[Any]
    rows: np.ndarray
    read: Callable[[Sequence[Any]], Iterator[tuple[str, np.ndarray | str]]]
    codes: np.ndarray
    values: Sequence[int | str]
    splits: np.ndarray
    root: str
    large: bool
    names: Sequence[str] | None = None
    skipped: tuple[dict[str, str], ...] = ()

    def labels(self, kept: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Labels of the images at these positions, as `RawImages` has them, and the names of the classes.

        Raises:
            PipelineError: if labels and names do not fit together.
        """
        codes = self.codes[kept]
        used = np.unique(codes[codes >= 0])
        try:
            numbers, classes = classes_of([self.values[code] for code in used], self.names)
        except (ValueError, TypeError) as error:
            raise PipelineError(f"{self.root}: column label: {error}") from None
        if numbers is None:
            return None, ()
        table = np.full(len(self.values) + 1, -1)  # the last entry is that of code -1
        table[used] = numbers
        return table[codes], classes


def read_ahead(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Results of `function` over `items` in their order, `READERS` of them at a time in threads.

    Example:
        >>> list(read_ahead(str.upper, "ab"))
        ['A', 'B']
    """
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(READERS, thread_name_prefix="readers") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= READERS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def merge_skipped(images: IndexedImages, bad: Sequence[dict[str, str]]) -> tuple[dict[str, str], ...]:
    """What the index left out and what turned out to be bad, in the source's order."""
    return tuple(heapq.merge(images.skipped, bad, key=lambda entry: entry["file"]))


def collect(images: IndexedImages, on_bad_image: str) -> RawImages:
    """Read them all in this process.

    Raises:
        PipelineError: naming an image that is bad, where it is not to be skipped, or that does not fit the others.
    """
    collector = Collector(on_bad_image, images.root)
    for index, (name, image) in enumerate(progress(images.read(images.parts), len(images.splits), "decode")):
        if isinstance(image, str):
            collector.reject(name, image)
        else:
            collector.add(index, name, image)
    pixels, kept = collector.finish()
    labels, classes = images.labels(kept)
    return RawImages(pixels, labels, images.splits[kept], classes, merge_skipped(images, collector.skipped))
