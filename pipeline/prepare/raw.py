"""The form that every source's images are brought to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["RawImages", "classes_of", "split_of_name"]

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
