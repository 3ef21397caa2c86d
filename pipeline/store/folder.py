"""Files on any fsspec URL: atomic writes, content hashes, manifests. The only module that touches storage.

A local file is written beside its place, flushed and renamed; an object store makes an object visible only when
its upload is complete. So a reader never sees half a file, and a stage that was killed leaves no manifest.
"""

import glob
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.config.errors import ConfigError, MissingFileError, PipelineError, StorageError
from pipeline.config.together import url_mistake

__all__ = ["Folder", "fingerprint", "sha256"]

# Read by S3's clients when they are made: go on asking through an outage of a minute (attempts with growing pauses, a
# minute and a half in the mean), where their own defaults give up after seconds. What the user has set stays.
os.environ.setdefault("AWS_RETRY_MODE", "standard")
os.environ.setdefault("AWS_MAX_ATTEMPTS", "14")


def sha256(content: bytes) -> str:
    """Hex digest of `content`.

    Example:
        >>> sha256(b"")[:8]
        'e3b0c442'
    """
    return hashlib.sha256(content).hexdigest()


def fingerprint(content: Any) -> str:
    """Hex digest of anything JSON can write, the same for equal content in any key order.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    return sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())


@dataclass(frozen=True)
class Folder:
    """A folder at a local path or fsspec URL.

    Attributes:
        url: absolute path or URL without a trailing slash; safe to hand to another process or machine.

    Raises:
        ConfigError: for memory://, for URLs that carry credentials and for s3:/bucket, with one slash.

    Example:
        >>> import tempfile
        >>> folder = Folder(tempfile.mkdtemp()) / "run"
        >>> folder.write("a.txt", b"hello")
        >>> folder.read("a.txt")
        b'hello'
    """

    url: str

    def __post_init__(self) -> None:
        if mistake := url_mistake(self.url):
            raise ConfigError(f"storage {mistake}")
        if "://" not in self.url:
            object.__setattr__(self, "url", str(Path(self.url).expanduser().absolute()))
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.url}/{name}")

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """fsspec's file system of this URL; credentials come from the environment, never from us."""
        try:
            # No cached listings: other processes write into the same folders, and must be seen.
            return fsspec.core.url_to_fs(self.url, use_listings_cache=False)[0]
        except (ImportError, ValueError) as error:
            raise ConfigError(f"storage {self.url}: {error}") from error

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's file system."""
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, name: str = "") -> str:
        """The path of `name` as this folder's file system wants it (no scheme)."""
        url = f"{self.url}/{name}" if name else self.url
        return str(self.filesystem._strip_protocol(url))

    @contextmanager
    def _explained(self, action: str, name: str = "") -> Iterator[None]:
        """Whatever the storage's client raises becomes one error that names action, URL and reason."""
        where = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except PipelineError:
            raise
        except OSError as error:
            raise StorageError(f"cannot {action} {where}: {error.strerror or error}") from error
        except Exception as error:
            # Clients of object stores have exceptions of their own (no credentials, no route, timeout).
            if self.is_local:
                raise
            raise StorageError(f"cannot {action} {where}: {str(error) or type(error).__name__}") from error

    def exists(self, name: str = "") -> bool:
        """Whether `name` is there.

        Raises:
            PipelineError: when the storage cannot be asked.
        """
        with self._explained("look for", name):
            return bool(self.filesystem.exists(self.path(name)))

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Content of `name`, or its bytes from `start` to `stop`.

        Raises:
            PipelineError: if it is not there or the storage refuses.
        """
        with self._explained("read", name):
            try:
                return self.filesystem.cat_file(self.path(name), start=start, end=stop)
            except FileNotFoundError:
                raise MissingFileError(f"{self.url}/{name} does not exist") from None

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """`name` as a file to seek and read in, for reading a part of it.

        Raises:
            PipelineError: if it is not there or the storage refuses, also while it is being read.
        """
        # What seeks in a file knows which bytes it wants: reading further ahead would load them in vain.
        options = {} if self.is_local else {"cache_type": "none"}
        with self._explained("read", name):
            try:
                handle = self.filesystem.open(self.path(name), "rb", **options)
            except FileNotFoundError:
                raise MissingFileError(f"{self.url}/{name} does not exist") from None
            with handle:
                yield handle

    def read_verified(self, name: str, digest: str) -> bytes:
        """Content of `name`, refused unless its sha256 is `digest`.

        Raises:
            PipelineError: naming the file and both hashes.
        """
        content = self.read(name)
        if (found := sha256(content)) != digest:
            raise PipelineError(
                f"{self.url}/{name} is damaged: sha256 {found[:12]}… where its manifest says {digest[:12]}…; "
                "run the stage that wrote it again with --force"
            )
        return content

    def read_json(self, name: str) -> Any:
        """Parsed JSON of `name`.

        Raises:
            PipelineError: if it is not there or not JSON.
        """
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise PipelineError(f"{self.url}/{name} is not valid JSON: {error}") from None

    def write(self, name: str, content: bytes) -> None:
        """Write `name` whole or not at all.

        Raises:
            PipelineError: when the storage refuses (full disk, no permission), naming file and reason.
        """
        with self._explained("write", name):
            target = self.path(name)
            if not self.is_local:
                self.filesystem.pipe_file(target, content)
                return
            os.makedirs(os.path.dirname(target), exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".partial-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o666 & ~_UMASK)
                os.replace(temporary, target)
            except BaseException:
                os.unlink(temporary)
                raise

    def create(self, name: str, content: bytes) -> bool:
        """Write `name` unless it is there; whether it was written. Of several processes at once one succeeds.

        Raises:
            PipelineError: when the storage refuses.
        """
        with self._explained("create", name):
            if self.is_local:
                temporary = f".partial-{uuid.uuid4().hex}"
                self.write(temporary, content)
                try:
                    os.link(self.path(temporary), self.path(name))
                except FileExistsError:
                    return False
                except OSError:  # without hard links, as on exFAT and many network drives: one gets it, still empty
                    try:
                        os.close(os.open(self.path(name), os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        return False
                    self.write(name, content)
                finally:
                    os.unlink(self.path(temporary))
                return True
            try:
                self.filesystem.pipe_file(self.path(name), content, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError):  # a storage without conditional writes
                if self.exists(name):
                    return False
                self.filesystem.pipe_file(self.path(name), content)
            except Exception as error:
                if "PreconditionFailed" in repr(error) or "412" in str(error):  # S3's answer, in its client's words
                    return False
                raise
            return True

    def write_json(self, name: str, content: Any) -> None:
        """Write `content` as indented JSON."""
        self.write(name, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def files(self, pattern: str) -> list[str]:
        """Sorted names of the files that match a glob pattern, relative to this folder.

        Raises:
            PipelineError: when the storage cannot be asked.
        """
        root = self.path().rstrip("/") + "/"
        with self._explained("list"):
            found = self.filesystem.glob(glob.escape(root) + pattern)
        return sorted(
            str(path).removeprefix(root) for path in found if not os.path.basename(path).startswith(".partial-")
        )

    def below(self, name: str = "", depth: int | None = None) -> dict[str, dict[str, Any]]:
        """What the storage says of every file below the folder `name`, by path under this folder, in sorted order.

        One listing, `depth` levels deep (None: all), where an object store gives a thousand files an answer.

        Raises:
            PipelineError: when the storage cannot be asked.
        """
        root, filesystem = self.path().rstrip("/") + "/", self.filesystem
        loud = {"on_error": "raise"} if self.is_local else {}  # else a folder that may not be read has no files
        with self._explained("list", name):
            filesystem.invalidate_cache(self.path(name))  # of a storage that keeps listings though told not to
            try:
                found = filesystem.find(self.path(name), maxdepth=depth, detail=True, **loud)
            except FileNotFoundError:
                return {}
        return {str(path).removeprefix(root): info for path, info in sorted(found.items())}

    def remove(self, name: str = "") -> None:
        """Delete `name` (a file or a folder with all in it); nothing happens when it is not there.

        Raises:
            PipelineError: when the storage refuses.
        """
        with self._explained("remove", name):
            if self.filesystem.exists(self.path(name)):
                self.filesystem.rm(self.path(name), recursive=True)

    def for_arrow(self) -> tuple[Any, str]:
        """(pyarrow file system, path) of this folder, as Ray Train and Ray Data take it; None for local paths."""
        if self.is_local:
            return None, self.path()
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self.filesystem)), self.path()

    @contextmanager
    def local_copy(self) -> Iterator[Path]:
        """A local path with this folder's files: the folder itself where it is local, else a temporary download."""
        if self.is_local:
            yield Path(self.path())
            return
        with tempfile.TemporaryDirectory() as temporary:
            with self._explained("read"):
                self.filesystem.get(self.path() + "/", temporary + "/", recursive=True)
            yield Path(temporary)


_UMASK = os.umask(0)
os.umask(_UMASK)  # mkstemp makes files private; artefacts follow the user's umask like any other file
