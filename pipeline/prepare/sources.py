"""Where images come from: `find_source` looks and describes, the source's `load` reads and decodes.

Every source is brought to the same form, `RawImages`. Looking is cheap (a listing at most), so an unchanged source
is recognised without reading it. Images that lie on storage, those of `folder` and `parquet`, are indexed first: of
many, no process ever holds more than some (see `scatter`). Decoded images of `torchvision` beyond 1 GiB lie in
temporary files under $TMPDIR, which needs room for them twice; those of `idx` and `digits` are held in memory.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.sections import Config, DataConfig
from pipeline.config.variants import SOURCES
from pipeline.prepare.decode import ENDINGS
from pipeline.prepare.digits import load_digits
from pipeline.prepare.files import index_folder
from pipeline.prepare.idx import load_idx
from pipeline.prepare.indexed import IndexedImages, collect
from pipeline.prepare.parquet import index_parquet
from pipeline.prepare.raw import RawImages
from pipeline.prepare.torchvision import load_torchvision, torchvision_class
from pipeline.store.folder import Folder, fingerprint

__all__ = [
    "RawImages",
    "Source",
    "describe_passed_over",
    "find_digits",
    "find_folder",
    "find_idx",
    "find_parquet",
    "find_source",
    "find_torchvision",
]


_ENDINGS_NAMED = 10
_HIDDEN = r"(^|/)(\.|__MACOSX/)"


class Source(NamedTuple):
    """A source that was found.

    Attributes:
        description: changes when the source's content does; JSON-serialisable.
        load: reads it; raises PipelineError naming the file that is wrong.
        passed_over: ending -> how many files of that ending lie there and are not read.
        indexed: labels, splits and places of images that lie on storage; None where only `load` can be called.
    """

    description: dict[str, Any]
    load: Callable[[], RawImages]
    passed_over: Mapping[str, int] = {}
    indexed: Callable[[], IndexedImages] | None = None


def find_source(config: Config) -> Source:
    """The source that `config.data` names.

    Raises:
        ConfigError: for an unknown torchvision class, or a folder that contains the run's own.
        PipelineError: if there is nothing at `data.path`.

    Example:
        >>> source = find_source(Config())
        >>> source.load().images.shape
        (1797, 1, 8, 8)
    """
    return SOURCES.find(config.data.source).find(config)


def find_digits(config: Config) -> Source:
    """Scikit-learn's bundled scans."""
    return Source({"scikit-learn": version("scikit-learn")}, partial(load_digits, config.data))


def find_torchvision(config: Config) -> Source:
    """A set of torchvision's by name."""
    torchvision_class(config.data)  # an unknown name shall fail before anything else happens
    return Source({"torchvision": version("torchvision")}, partial(load_torchvision, config.data))


def find_idx(config: Config) -> Source:
    """MNIST-style IDX files in one folder."""
    endings = ("-ubyte", "-ubyte.gz", "classes.txt")
    found = _find_files(config, endings, recursive=False)
    return Source(found.description, partial(load_idx, config.data, found.folder, found.names), found.passed_over)


def find_folder(config: Config) -> Source:
    """Image files, whose folders are labels."""
    return _indexed(config, index_folder, _find_files(config, ENDINGS))


def find_parquet(config: Config) -> Source:
    """Parquet files with an image column."""
    return _indexed(config, index_parquet, _find_files(config, (".parquet",)))


class _Files(NamedTuple):
    """The files of a source, and what `Source` says of them."""

    folder: Folder
    names: list[str]
    description: dict[str, Any]
    passed_over: dict[str, int]


def _indexed(
    config: Config, index: Callable[[DataConfig, Folder, Sequence[str]], IndexedImages], found: _Files
) -> Source:
    indexed = partial(index, config.data, found.folder, found.names)
    return Source(found.description, lambda: collect(indexed(), config.data.on_bad_image), found.passed_over, indexed)


def _find_files(config: Config, endings: tuple[str, ...], recursive: bool = True) -> _Files:
    path = config.data.path
    assert path is not None  # DataConfig checks it
    if recursive:
        _refuse_own_folder(config, path)
    folder, found = _list_files(path, recursive)
    files = {name: tag for name, tag in found.items() if name.lower().endswith(endings)}
    passed_over = _count_endings(found.keys() - files.keys())
    if not files:
        there = f"; it has {describe_passed_over(passed_over)}" if passed_over else ""
        raise PipelineError(
            f"{folder.url} has no files for source {config.data.source!r}: {', '.join(endings)}{there}"
        )
    return _Files(folder, list(files), {"files": len(files), "digest": fingerprint(files)}, passed_over)


def _count_endings(names: Iterable[str]) -> dict[str, int]:
    """How many files have each ending, the most frequent first."""
    counts = Counter(posixpath.splitext(name)[1].lower() for name in names)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe_passed_over(counts: Mapping[str, int]) -> str:
    """Files of other endings in words.

    Example:
        >>> describe_passed_over({".txt": 1200, "": 1})
        '1,200 of ending .txt, 1 without ending'
    """
    named = dict(list(counts.items())[:_ENDINGS_NAMED])
    said = [f"{n:,} of ending {ending}" if ending else f"{n:,} without ending" for ending, n in named.items()]
    if others := sum(counts.values()) - sum(named.values()):
        said.append(f"{others:,} of {len(counts) - len(named):,} other endings")
    return ", ".join(said)


def _refuse_own_folder(config: Config, path: str) -> None:
    source, run = f"{Folder(path).url}/", f"{(Folder(config.storage) / config.name).url}/"
    if run.startswith(source) or source.startswith(f"{run}data/"):
        raise ConfigError(
            f"data.path={path}: this folder and the run's own, {run}, lie inside each other, so the run would read "
            "or delete its own files; set storage or name to another place"
        )


def _list_files(path: str, recursive: bool = True) -> tuple[Folder, dict[str, str]]:
    """The folder and its files in sorted order, each with size and a tag that changes with its content.

    Hidden files and folders are left out: among them are the `._*.png` that macOS puts into archives.
    """
    folder = Folder(path)
    try:
        filesystem, root = folder.filesystem, folder.path()
        info = filesystem.info(root)  # not isfile and isdir, for which a storage that fails is an empty one
        if info["type"] == "file":
            parent, _, name = folder.url.rpartition("/")
            return Folder(parent), {name: _tag(info)}
    except ConfigError:
        raise
    except FileNotFoundError:
        raise PipelineError(
            f"data.path={path}: there is no such file or folder ({folder.url}); torchvision's own sets need none: "
            "data.source=torchvision data.name=MNIST data.path=null"
        ) from None
    except Exception as error:  # every object store's client raises its own kinds
        raise PipelineError(f"data.path={path}: cannot list {folder.url}: {error}") from error
    found = folder.below(depth=None if recursive else 1)
    return folder, {name: _tag(about) for name, about in found.items() if not re.search(_HIDDEN, name)}


def _tag(info: dict[str, Any]) -> str:
    changed = next((info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if key in info), "")
    return f"{info.get('size')} {changed}"
