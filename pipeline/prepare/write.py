"""Cuts a source into splits and writes them; in memory, or in parts where they are large."""

from typing import Any

import numpy as np

from pipeline.prepare.indexed import collect
from pipeline.prepare.raw import RawImages
from pipeline.prepare.scatter import Written, write_scattered
from pipeline.prepare.sources import Source, describe_passed_over
from pipeline.prepare.splits import cut_splits
from pipeline.store.data.shards import write_split
from pipeline.store.manifest import Output, say
from pipeline.store.run import Run

__all__ = ["work"]

_LISTED = 1000  # of the skipped files; a manifest is read by every later stage


def work(run: Run, source: Source) -> tuple[list[Output], dict[str, Any]]:
    """Cut and write; name what was written and what is to be told."""
    config = run.config
    images = None if source.indexed is None else source.indexed()
    if images is None:
        done = _write_here(run, source.load())
    elif images.large:
        run.folder.remove("data")
        done = write_scattered(config, run.folder, images)
    else:
        done = _write_here(run, collect(images, config.data.on_bad_image))
    counts = {split: len(indices) for split, indices in done.parts.items()}
    used = np.concatenate(list(done.parts.values()))
    labelled = np.array([], np.int64) if done.labels is None else done.labels[used]
    label_counts = np.bincount(labelled[labelled >= 0], minlength=len(done.classes)).tolist()
    info = {
        "source": config.data.source,
        "shape": list(done.shape),
        "counts": counts,
        "classes": list(done.classes),
        "label_counts": dict(zip(done.classes, label_counts, strict=True)),
        "pixel_mean": done.pixel_sum / (counts["train"] * int(np.prod(done.shape)) * 255),
        "skipped": list(done.skipped[:_LISTED]),
        "skipped_count": len(done.skipped),
        "passed_over": dict(source.passed_over),
    }
    say(f"data: {_summary(info)}")
    return done.outputs, info


def _write_here(run: Run, raw: RawImages) -> Written:
    """Write images that this process holds."""
    data = run.config.data
    parts = cut_splits(raw.splits, data, run.config.seed)
    run.folder.remove("data")  # shards of an earlier, larger data set would outlive this one
    outputs: list[Output] = []
    for split, indices in parts.items():
        outputs += write_split(run.folder, split, raw.images, raw.labels, data.images_per_shard, indices)
    pixel_sum = sum(int(raw.images[index].sum(dtype=np.int64)) for index in parts["train"])  # exact, without a copy
    return Written(outputs, raw.images.shape[1:], parts, raw.labels, raw.classes, raw.skipped, pixel_sum)


def _summary(info: dict[str, Any]) -> str:
    shape = "x".join(str(side) for side in info["shape"])
    classes = f"{len(info['classes'])} classes" if info["classes"] else "no labels"
    counts = ", ".join(f"{split} {count:,}" for split, count in info["counts"].items())
    skipped = f"; {info['skipped_count']:,} files skipped" if info["skipped_count"] else ""
    passed_over = f"; passed over: {describe_passed_over(info['passed_over'])}" if info["passed_over"] else ""
    return f"{sum(info['counts'].values()):,} images {shape}, {classes}: {counts}{skipped}{passed_over}"
