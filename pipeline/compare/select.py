"""Which cells `--force` means, by name, glob or hash, and what computing them anew costs."""

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pipeline.compare.cells import DECODER, Cell, autoencoder_cell, decoder_cell, generator_cell
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.sections import Config
from pipeline.store.folder import Folder
from pipeline.store.manifest import say

__all__ = ["check_names", "hours", "possible_cells", "remove_cells"]

_SHOWN = 8  # names in a line


def _settings(candidates: Sequence[float]) -> Sequence[float | None]:
    return candidates or [None]


def possible_cells(config: Config, data: str = "", features: str = "", second: str = "") -> Iterator[Cell]:
    """Every cell that a comparison may compute, whichever candidates it will choose.

    Args:
        config: the run's configuration.
        data: digest of the data set; without it and `features` only the names are right, not the keys.
        features: hash of the extractor.
        second: hash of the second one.

    Example:
        >>> config = Config.model_validate({"compare": {"autoencoders": {"vae": []}, "generators": {"gmm": []}}})
        >>> [cell.name for cell in possible_cells(config)][:3]
        ['vae/seed0', 'vae/seed0/gmm', 'vae/seed1']
    """
    settings = config.compare
    for name, candidates in settings.autoencoders.items():
        for setting in _settings(candidates):
            for seed in range(settings.seeds):
                cell = autoencoder_cell(config, data, features, name, setting, config.seed + seed)
                for on in [cell] if settings.decoder == "none" else [cell, decoder_cell(config, cell)]:
                    yield on
                    for generator in settings.generators_of(name):
                        for own in _settings(settings.generators[generator]):
                            yield generator_cell(config, on, generator, own, second)


def _parts(name: str) -> set[str]:
    """What a pattern without a slash is held against: the name's parts, with and without their settings."""
    parts = name.split("/")
    return {*parts, *(part.partition("@")[0].removesuffix(DECODER) for part in parts)}


def _matches(pattern: str, cell: Cell) -> bool:
    if pattern == cell.key or fnmatchcase(cell.name, pattern):
        return True
    return "/" not in pattern and any(fnmatchcase(part, pattern) for part in _parts(cell.name))


def check_names(config: Config, folder: Folder, patterns: Sequence[str]) -> None:
    """Refuse what names no cell, before anything is computed.

    Args:
        config: whose cells.
        folder: of the run, where a hash may name a cell of another configuration.
        patterns: names, globs or hashes.

    Raises:
        ConfigError: naming what names no cell, and what is called nearly so.
    """
    cells = list(possible_cells(config)) if patterns else []  # each reads the files that the configuration names
    for pattern in patterns:
        if any(_matches(pattern, cell) for cell in cells):
            continue
        if pattern and "/" not in pattern and pattern.isalnum() and folder.exists(f"compare/cells/{pattern}"):
            continue
        names = {cell.name for cell in cells}
        words = names | {part for name in names for part in _parts(name)}
        near = difflib.get_close_matches(pattern, sorted(words), 3) or sorted(names)[:3]
        raise ConfigError(
            f"compare --force: no cell is called {pattern!r}; close to it: {', '.join(near)} (a name, a part of one "
            "such as vae, gmm or seed0, a glob of either, or a hash; docs/compare.md)"
        )


def hours(records: Sequence[dict[str, Any]]) -> str:
    """What has been spent on computing cells, in words.

    Example:
        >>> hours([{"figures": {"seconds": 5400.0}}, {"failure": "out of memory"}])
        '1.5 hours of computing'
    """
    figures = [record.get("figures") for record in records]
    spent = [one.get("seconds") for one in figures if isinstance(one, dict)]
    seconds = sum(number for number in spent if isinstance(number, int | float))
    if seconds < 360:
        return f"{seconds:.0f} seconds of computing"
    return f"{seconds / 3600:.1f} hours of computing"


def _stored(folder: Folder) -> dict[str, dict[str, Any]]:
    """Key -> record of what is kept; of a damaged record nothing but that it is there."""
    found = {}
    for name in folder.files("compare/cells/*/*"):
        key = name.split("/")[2]
        if name.endswith("/record.json"):
            try:
                record = folder.read_json(name)
            except PipelineError:
                record = None
            found[key] = record if isinstance(record, dict) else {}
        else:
            found.setdefault(key, {})
    return found


def remove_cells(folder: Folder, cells: Sequence[Cell], patterns: Sequence[str]) -> None:
    """Delete the cells that patterns name, with what stands on them, saying first how many and what they have cost.

    Args:
        folder: of the run.
        cells: of the comparison (`possible_cells`, with their keys).
        patterns: names, globs or hashes.
    """
    stored = _stored(folder)
    named = {cell.key for cell in cells if any(_matches(pattern, cell) for pattern in patterns)}
    named |= stored.keys() & set(patterns)

    def parent(key: str) -> Any:
        job = stored[key].get("cell")
        return job.get("parent") if isinstance(job, dict) else None

    # A generator's key holds its autoencoder's, which is not another one when the autoencoder is made anew.
    above: set[str] = set()
    while True:  # what stands on a cell may have others on it
        under = named | above
        more_above = {cell.key for cell in cells if cell.job.get("parent") in under}
        more_above |= {key for key in stored if parent(key) in under}
        if more_above <= above:
            break
        above |= more_above
    gone = [key for key in stored if key in named | above]
    names = {cell.key: cell.name for cell in cells}
    shown = ", ".join([names.get(key, key) for key in gone][:_SHOWN]) + (", …" if len(gone) > _SHOWN else "")
    more = len(set(gone) & above - named)
    also = f"; {more} of them stand on autoencoders that are made anew" if more else ""
    what = "1 cell" if len(gone) == 1 else f"{len(gone)} cells"
    say(
        f"compare: --force deletes {what}, {hours([stored[key] for key in gone])}{also}" + (f": {shown}" * bool(gone))
    )
    for key in gone:
        folder.remove(f"compare/cells/{key}")
    begun = {name.split("/")[2] for name in folder.below("compare/checkpoints")}
    for key in begun & (named | above):  # what was half computed too
        folder.remove(f"compare/checkpoints/{key}")
