"""Shards of images that need not fit in memory, written by Ray tasks in two passes over the run's storage.

Every image has a place, one of the shards and a row in it, as soon as labels and splits are indexed: the same as if
all were in memory. Tasks of the first pass read and decode some of the images each, and write them to `data/scratch/`
in blocks, sorted by shard. Tasks of the second pass gather a shard's rows, one stretch of every block, put them in
order and write the shard. So a task holds a block or a shard, and this process no pixel at all.

A bad image that is to be skipped changes the place of all: then the first pass is done again without it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pipeline.config.sections import Config
from pipeline.prepare.decode import progress
from pipeline.prepare.gather import Collector, FirstImage
from pipeline.prepare.indexed import IndexedImages, merge_skipped, read_ahead
from pipeline.prepare.splits import cut_splits
from pipeline.remote.connect import connect, parallel_map
from pipeline.remote.hardware import grows
from pipeline.store.data.shards import SPLITS, Shard, rows_per_shard, write_index, write_shard
from pipeline.store.folder import Folder
from pipeline.store.manifest import Output

__all__ = ["BLOCK_BYTES", "Written", "write_scattered"]

BLOCK_BYTES = 64 * 2**20
"""Pixels of a block of the first pass."""

_SCRATCH = "data/scratch"
_WAITING = 32  # tasks at a time on a cluster that grows

T = TypeVar("T")


class Written(NamedTuple):
    """A data set that was written.

    Attributes:
        outputs: of all splits.
        shape: (C, H, W).
        parts: which images of the source make up each split.
        labels: of all images of the source, -1 where there is none; None without labels.
        classes: names of labels 0, 1, …
        skipped: `{"file", "reason"}` of what was left out.
        pixel_sum: of the training images.
    """

    outputs: list[Output]
    shape: tuple[int, ...]
    parts: dict[str, np.ndarray]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    skipped: tuple[dict[str, str], ...]
    pixel_sum: int


class _Place(NamedTuple):
    """A shard, and which images of the source are its rows."""

    split: str
    number: int
    rows: np.ndarray


class _Portion(NamedTuple):
    """What a task of the first pass reads: some parts of the source, whose images are those from `first` on."""

    folder: Folder
    number: int
    read: Callable[[Sequence[Any]], Iterator[tuple[str, np.ndarray | str]]]
    parts: Sequence[Any]
    first: int
    shards: np.ndarray  # of each image, -1 for none
    rows: int  # of a block
    root: str
    as_large_as: FirstImage


class _Block(NamedTuple):
    """A file of the first pass: the pixels of the images from `first` on that have a shard, sorted by shard."""

    name: str
    first: int
    channels: int


class _Read(NamedTuple):
    """What a task of the first pass tells; `bad` are numbers of images with name and reason."""

    blocks: list[_Block]
    channels: int
    bad: dict[int, tuple[str, str]]


class _Stretch(NamedTuple):
    """A shard's rows in a block."""

    block: _Block
    start: int
    stop: int


class _Gathering(NamedTuple):
    """What a task of the second pass writes."""

    folder: Folder
    place: _Place
    labels: np.ndarray | None
    shape: tuple[int, ...]
    stretches: list[_Stretch]


def _read_portion(portion: _Portion) -> _Read:
    """First pass: decode, and write blocks sorted by shard."""
    blocks: list[_Block] = []
    bad: dict[int, tuple[str, str]] = {}
    buffer, channels = np.empty((0, 1, 0, 0), np.uint8), 1
    start, rows = 0, len(portion.shards)
    held: list[int] = []  # whose pixels are in the buffer
    for row, (name, image) in enumerate(portion.read(portion.parts)):
        if isinstance(image, str):
            bad[portion.first + row] = name, image
        else:
            portion.as_large_as.check(portion.root, name, image)
            channels = max(channels, len(image))
            if not len(buffer):
                buffer = np.empty((min(portion.rows, rows), *image.shape), np.uint8)
            elif len(image) > buffer.shape[1]:
                buffer = np.repeat(buffer, len(image), axis=1)
            buffer[len(held)] = image  # grey broadcasts to RGB
            held.append(row)
        if row + 1 in (start + portion.rows, rows):
            block = _Block(
                f"{_SCRATCH}/{portion.number:05d}-{len(blocks):05d}", portion.first + start, buffer.shape[1]
            )
            shards = portion.shards[held]
            order = np.argsort(shards, kind="stable")[np.count_nonzero(shards < 0) :]
            portion.folder.write(block.name, buffer[order].tobytes())
            blocks.append(block)
            start, held = row + 1, []
    return _Read(blocks, channels, bad)


def _gather_shard(job: _Gathering) -> tuple[Shard, int]:
    """Second pass: write a shard; also the sum of its pixels."""
    rows, (channels, *sides) = job.place.rows, job.shape
    pixels = np.empty((len(rows), channels, *sides), np.uint8)
    order = np.argsort(rows)  # in the blocks a shard's images lie in the order of the source
    at = 0
    for found in read_ahead(lambda stretch: _read_stretch(job.folder, stretch, sides), job.stretches):
        pixels[order[at : at + len(found)]] = found
        at += len(found)
    return write_shard(job.folder, job.place.split, job.place.number, pixels, job.labels), _sum(pixels)


def _sum(pixels: np.ndarray) -> int:
    return int(pixels.sum(dtype=np.int64))


def _read_stretch(folder: Folder, stretch: _Stretch, sides: Sequence[int]) -> np.ndarray:
    block, start, stop = stretch
    size = block.channels * int(np.prod(sides))
    content = folder.read(block.name, start * size, stop * size)
    return np.frombuffer(content, np.uint8).reshape(stop - start, block.channels, *sides)


def write_scattered(config: Config, folder: Folder, images: IndexedImages) -> Written:
    """Write the shards of all splits.

    Args:
        config: of the run.
        folder: of the run; its `data/` is empty.
        images: of the source.

    Raises:
        PipelineError: naming an image that is bad, where it is not to be skipped, or that does not fit the others.
    """
    import ray

    try:
        with connect(config):
            workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
            # What waits is the demand by which a cluster scales, and such a one begins small.
            return _write(config, folder, images, max(workers, _WAITING) if grows() else workers)
    finally:
        folder.remove(_SCRATCH)


def _write(config: Config, folder: Folder, images: IndexedImages, workers: int) -> Written:
    bad = Collector(config.data.on_bad_image, images.root)
    name, image = _first_good(images, bad)
    shape, as_large_as = image.shape, FirstImage(name, *image.shape[1:])
    count = len(images.splits)
    left_out: dict[int, tuple[str, str]] = {}
    while True:
        step = rows_per_shard(shape, config.data.images_per_shard)
        kept = np.delete(np.arange(count), np.array(sorted(left_out), np.int64))
        cut = cut_splits(images.splits[kept], config.data, config.seed)
        parts = {split: kept[rows] for split, rows in cut.items()}
        places = [
            _Place(split, number, parts[split][first : first + step])
            for split in SPLITS
            for number, first in enumerate(range(0, len(parts[split]), step))
        ]
        room = BLOCK_BYTES // ((config.data.channels or 3) * as_large_as.height * as_large_as.width)
        block = max(1, min(room, -(-count // (4 * workers))))  # several portions for every worker
        portions = list(_portions(folder, images, places, block, as_large_as))
        blocks: list[_Block] = []
        found: dict[int, tuple[str, str]] = {}
        channels = 1
        for read in _results(_read_portion, portions, workers, images.root, "decode", len(portions)):
            for row, told in read.bad.items():
                if row not in left_out:
                    bad.reject(*told)
                    found[row] = told
            blocks += read.blocks
            channels = max(channels, read.channels)
        shape = (channels, *shape[1:])
        if not found and step == rows_per_shard(shape, config.data.images_per_shard):
            break
        left_out |= found
    labels, classes = images.labels(kept)
    if labels is not None:
        of_all = np.full(count, -1)
        of_all[kept] = labels
        labels = of_all
    jobs = _gatherings(folder, places, blocks, labels, shape)
    written = list(_results(_gather_shard, jobs, workers, images.root, "write", len(places)))
    outputs: list[Output] = []
    for split in SPLITS:
        shards = [shard for place, (shard, _) in zip(places, written, strict=True) if place.split == split]
        outputs += [*(shard.output for shard in shards), write_index(folder, split, shards)]
    pixel_sum = sum(total for place, (_, total) in zip(places, written, strict=True) if place.split == "train")
    skipped = [{"file": name, "reason": reason} for _, (name, reason) in sorted(left_out.items())]
    return Written(outputs, shape, parts, labels, classes, merge_skipped(images, skipped), pixel_sum)


def _first_good(images: IndexedImages, bad: Collector) -> tuple[str, np.ndarray]:
    for name, image in images.read(images.parts):
        if not isinstance(image, str):
            return name, image
        bad.reject(name, image)
    bad.finish()  # raises: there is no image
    raise AssertionError


def _portions(
    folder: Folder, images: IndexedImages, places: Sequence[_Place], block: int, as_large_as: FirstImage
) -> Iterator[_Portion]:
    shards = np.full(len(images.splits), -1, np.int32)
    for shard, place in enumerate(places):
        shards[place.rows] = shard
    ends = np.cumsum(images.rows)
    first_part = first = number = 0
    while first_part < len(images.parts):
        stop = min(int(np.searchsorted(ends, first + block, "right")), len(images.parts))
        stop = max(stop, first_part + 1)
        last = int(ends[stop - 1])
        parts = images.parts[first_part:stop]
        yield _Portion(folder, number, images.read, parts, first, shards[first:last], block, images.root, as_large_as)
        first_part, first, number = stop, last, number + 1


def _gatherings(
    folder: Folder,
    places: Sequence[_Place],
    blocks: Sequence[_Block],
    labels: np.ndarray | None,
    shape: tuple[int, ...],
) -> Iterator[_Gathering]:
    firsts = np.array([block.first for block in blocks])
    taken = np.zeros(len(blocks), np.int64)  # rows of each block that belong to shards before this one
    for place in places:
        rows = np.bincount(np.searchsorted(firsts, place.rows, "right") - 1, minlength=len(blocks))
        found = np.flatnonzero(rows)
        stretches = [_Stretch(blocks[i], int(taken[i]), int(taken[i] + rows[i])) for i in found.tolist()]
        taken += rows
        yield _Gathering(folder, place, None if labels is None else labels[place.rows], shape, stretches)


def _results(
    task: Callable[[Any], T], jobs: Iterable[Any], workers: int, root: str, what: str, total: int
) -> Iterator[T]:
    found = parallel_map(task, jobs, workers, what=f"{root}: a task of prepare")
    yield from progress(found, total, what, "tasks")
