"""Where images come from: `find_source` looks and describes, the source's `load` reads and decodes.

Every source is brought to the same form, `RawImages`. Looking is cheap (a listing at most), so an unchanged source
is recognised without reading it. Decoded images beyond 1 GiB lie in temporary files under $TMPDIR, which needs room
for them twice; those of `idx` and `digits` are held in memory.
"""

import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.sections import Config
from pipeline.config.variants import SOURCES
from pipeline.prepare.digits import load_digits
from pipeline.prepare.files import load_folder
from pipeline.prepare.idx import load_idx
from pipeline.prepare.parquet import load_parquet
from pipeline.prepare.raw import RawImages
from pipeline.prepare.torchvision import load_torchvision, torchvision_class
from pipeline.store.folder import Folder, fingerprint

__all__ = [
    "RawImages",
    "Source",
    "find_digits",
    "find_folder",
    "find_idx",
    "find_parquet",
    "find_source",
    "find_torchvision",
]


class Source(NamedTuple):
    """A source that was found.

    Attributes:
        description: changes when the source's content does; JSON-serialisable.
        load: reads it; raises PipelineError naming the file that is wrong.
    """

    description: dict[str, Any]
    load: Callable[[], RawImages]


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
    return _find_files(config, partial(load_idx, config.data), endings, recursive=False)


def find_folder(config: Config) -> Source:
    """Image files, whose folders are labels."""
    return _find_files(config, partial(load_folder, config), (".png", ".jpg", ".jpeg"))


def find_parquet(config: Config) -> Source:
    """Parquet files with an image column."""
    return _find_files(config, partial(load_parquet, config.data), (".parquet",))


def _find_files(
    config: Config,
    load: Callable[[Folder, list[str]], RawImages],
    endings: tuple[str, ...],
    recursive: bool = True,
) -> Source:
    path = config.data.path
    assert path is not None  # DataConfig checks it
    if recursive:
        _refuse_own_folder(config, path)
    folder, files = _list_files(path, recursive)
    files = {name: tag for name, tag in files.items() if name.lower().endswith(endings)}
    if not files:
        kind = config.data.source
        raise PipelineError(f"{folder.url} has no files for source {kind!r}: {', '.join(endings)}")
    return Source({"files": len(files), "digest": fingerprint(files)}, partial(load, folder, list(files)))


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
        if filesystem.isfile(root):
            parent, _, name = folder.url.rpartition("/")
            return Folder(parent), {name: _tag(filesystem.info(root))}
        if not filesystem.isdir(root):
            raise PipelineError(f"data.path={path}: there is no such file or folder ({folder.url})")
        found = filesystem.find(root, maxdepth=None if recursive else 1, detail=True)
    except (ConfigError, PipelineError):
        raise
    except Exception as error:  # every object store's client raises its own kinds
        raise PipelineError(f"data.path={path}: cannot list {folder.url}: {error}") from error
    prefix = root.rstrip("/") + "/"
    files = {str(name).removeprefix(prefix): _tag(info) for name, info in sorted(found.items())}
    return folder, {name: tag for name, tag in files.items() if not re.search(r"(^|/)(\.|__MACOSX/)", name)}


def _tag(info: dict[str, Any]) -> str:
    changed = next((info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if key in info), "")
    return f"{info.get('size')} {changed}"
