"""Cuts a source into splits and writes them; what `python -m pipeline.prepare` runs."""

from typing import Any

import numpy as np

from pipeline.config.errors import PipelineError
from pipeline.config.sections import DataConfig
from pipeline.prepare.sources import Source, describe_passed_over, find_source
from pipeline.store.data.shards import SPLITS, write_split
from pipeline.store.manifest import Manifest, Output, say
from pipeline.store.run import Run

__all__ = ["cut_splits", "run"]

_LISTED = 1000  # of the skipped files; a manifest is read by every later stage


def cut_splits(splits: np.ndarray, data: DataConfig, seed: int) -> dict[str, np.ndarray]:
    """Which images make up each split.

    Args:
        splits: (N,) "train", "validation" or "test" as the source has them.
        data: fractions, and how many training images to keep.
        seed: decides every random choice.

    Returns:
        Disjoint arrays of indices for each of `SPLITS`; the training images in random order. Unless
        `data.max_train_images` drops some, together they are all N.

    Raises:
        PipelineError: if a split would be empty.

    Example:
        >>> parts = cut_splits(np.full(100, "train"), DataConfig(), seed=0)
        >>> {name: len(indices) for name, indices in parts.items()}
        {'train': 72, 'validation': 8, 'test': 20}
    """
    rng = np.random.default_rng(seed)
    parts = {name: np.flatnonzero(splits == name) for name in SPLITS}
    pool = rng.permutation(parts["train"])
    for name, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if len(parts[name]) == 0:
            count = max(1, round(fraction * len(pool)))
            parts[name], pool = np.sort(pool[:count]), pool[count:]
    parts["train"] = pool[: data.max_train_images]
    counts = {name: len(indices) for name, indices in parts.items()}
    if 0 in counts.values():
        raise PipelineError(f"{len(splits):,} images are too few for three splits, each needs at least one: {counts}")
    return parts


def run(run: Run, force: bool = False) -> Manifest:
    """See `pipeline.prepare.run`."""
    source = find_source(run.config)
    depends_on = {
        "data": run.config.data.model_dump(mode="json"),
        "seed": run.config.seed,
        "source": source.description,
    }
    return run.stage("data", depends_on, lambda _: _write(run, source), force)


def _write(run: Run, source: Source) -> tuple[list[Output], dict[str, Any]]:
    raw, config = source.load(), run.config
    parts = cut_splits(raw.splits, config.data, config.seed)
    run.folder.remove("data")  # shards of an earlier, larger data set would outlive this one
    outputs: list[Output] = []
    for split, indices in parts.items():
        outputs += write_split(run.folder, split, raw.images, raw.labels, config.data.images_per_shard, indices)
    counts = {split: len(indices) for split, indices in parts.items()}
    used = np.concatenate(list(parts.values()))
    labelled = np.array([], np.int64) if raw.labels is None else raw.labels[used]
    label_counts = np.bincount(labelled[labelled >= 0], minlength=len(raw.classes)).tolist()
    info = {
        "source": config.data.source,
        "shape": list(raw.images.shape[1:]),
        "counts": counts,
        "classes": list(raw.classes),
        "label_counts": dict(zip(raw.classes, label_counts, strict=True)),
        "pixel_mean": _pixel_mean(raw.images, parts["train"]),
        "skipped": list(raw.skipped[:_LISTED]),
        "skipped_count": len(raw.skipped),
        "passed_over": dict(source.passed_over),
    }
    say(f"data: {_summary(info)}")
    return outputs, info


def _pixel_mean(images: np.ndarray, indices: np.ndarray) -> float:
    total = sum(int(images[index].sum(dtype=np.int64)) for index in indices)  # exact, and without a copy
    return total / (len(indices) * int(np.prod(images.shape[1:])) * 255)


def _summary(info: dict[str, Any]) -> str:
    shape = "x".join(str(side) for side in info["shape"])
    classes = f"{len(info['classes'])} classes" if info["classes"] else "no labels"
    counts = ", ".join(f"{split} {count:,}" for split, count in info["counts"].items())
    skipped = f"; {info['skipped_count']:,} files skipped" if info["skipped_count"] else ""
    passed_over = f"; passed over: {describe_passed_over(info['passed_over'])}" if info["passed_over"] else ""
    return f"{sum(info['counts'].values()):,} images {shape}, {classes}: {counts}{skipped}{passed_over}"
