"""Folders of image files."""

import numpy as np

from pipeline.config.sections import Config
from pipeline.prepare.decode import decode_files
from pipeline.prepare.gather import Collector
from pipeline.prepare.raw import RawImages, classes_of, split_of_name
from pipeline.store.folder import Folder

__all__ = ["load_folder"]


def load_folder(config: Config, folder: Folder, names: list[str]) -> RawImages:
    """Image files of the kinds that `decode.ENDINGS` names.

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
