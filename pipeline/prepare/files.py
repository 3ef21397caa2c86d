"""Folders of image files."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from pipeline.config.sections import DataConfig
from pipeline.prepare.decode import Form, decode_or_reason
from pipeline.prepare.indexed import IndexedImages, read_ahead
from pipeline.prepare.raw import split_of_name
from pipeline.store.folder import Folder

__all__ = ["PARALLEL_FROM", "index_folder"]

PARALLEL_FROM = 2000
"""Files from which on starting Ray (about 6 s on one machine) pays."""


def index_folder(data: DataConfig, folder: Folder, names: Sequence[str]) -> IndexedImages:
    """Image files of the kinds that `decode.ENDINGS` names.

    Top-level folders `train`, `validation` (or `val`) and `test` are splits if `train` is there and at least one
    other, or nothing else; then files outside them are left out and listed. The next folder is the label.
    """
    top = {name.split("/")[0] for name in names if "/" in name}
    found = {split for name in top if (split := split_of_name(name)) is not None}
    has_splits = "train" in found and (len(found) > 1 or len(top) == 1)
    splits: list[str] = []
    codes: list[int] = []
    values: dict[str, int] = {}
    used: list[str] = []
    skipped: list[dict[str, str]] = []
    for name in names:
        *folders, _ = name.split("/")
        split = "train"
        if has_splits:
            named = split_of_name(folders.pop(0)) if folders else None
            if named is None:
                skipped.append({"file": name, "reason": f"outside the split folders {sorted(found)}"})
                continue
            split = named
        used.append(name)
        splits.append(split)
        codes.append(values.setdefault(folders[0], len(values)) if folders else -1)
    return IndexedImages(
        used,
        np.ones(len(used), np.int64),
        partial(_read, folder=folder, form=Form.of(data)),
        np.array(codes, np.int32),
        list(values),
        np.array(splits, object),
        folder.url,
        len(used) >= PARALLEL_FROM,
        skipped=tuple(skipped),
    )


def _read(names: Sequence[str], folder: Folder, form: Form) -> Iterator[tuple[str, np.ndarray | str]]:
    for name, content in zip(names, read_ahead(folder.read, names), strict=True):
        yield name, decode_or_reason(content, form, f"{folder.url}/{name}")
