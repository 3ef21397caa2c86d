"""Which images make up which split."""

import numpy as np

from pipeline.config.errors import PipelineError
from pipeline.config.sections import DataConfig
from pipeline.store.data.shards import SPLITS

__all__ = ["cut_splits"]


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
