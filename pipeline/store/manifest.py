"""What a finished stage says of itself."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.store.folder import fingerprint, sha256

__all__ = ["Manifest", "Output", "at_format", "parse_manifest", "say"]


class Output(NamedTuple):
    """A file that a stage has written, as its manifest names it.

    Attributes:
        name: path under the run's folder.
        size: in bytes.
        sha256: of its content.

    Example:
        >>> Output.of("data/a.txt", b"hello").size
        5
    """

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "Output":
        """What there is to say of `content`."""
        return cls(name, len(content), sha256(content))


class Manifest(NamedTuple):
    """A stage's manifest, kept as `<stage>/manifest.json`.

    Attributes:
        stage: name of the stage's folder.
        fingerprint: hash of everything the stage depends on; a stage whose fingerprint is unchanged is skipped.
        outputs: path under the run's folder -> {"bytes", "sha256"}.
        info: the stage's own figures.
        versions: of Python and the libraries.
        finished: UTC time.
        seconds: wall time.
    """

    stage: str
    fingerprint: str
    outputs: dict[str, dict[str, Any]]
    info: dict[str, Any]
    versions: dict[str, str]
    finished: str
    seconds: float

    @property
    def digest(self) -> str:
        """Hash of the outputs' content: what the next stages depend on."""
        return fingerprint({name: entry["sha256"] for name, entry in self.outputs.items()})


def at_format(content: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What a fingerprint is made of, with the format number of the code that makes the outputs.

    Number 1 is left out: it stands for what was kept before there were numbers, and that stays valid.

    Example:
        >>> at_format({"seed": 0}, 1), at_format({"seed": 0}, 2)
        ({'seed': 0}, {'seed': 0, 'format': 2})
    """
    return {**content, "format": number} if number > 1 else dict(content)


def parse_manifest(content: Any) -> Manifest:
    """A manifest from what its JSON holds.

    Raises:
        ValueError: saying what is wrong with it.

    Example:
        >>> parse_manifest([1])
        Traceback (most recent call last):
        ValueError: it is no mapping
    """
    if not isinstance(content, dict):
        raise ValueError("it is no mapping")
    if missing := [name for name in Manifest._fields if name not in content]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if foreign := [name for name in content if name not in Manifest._fields]:
        raise ValueError(f"it has unknown entries: {', '.join(map(str, foreign))}")
    kinds = {"stage": str, "fingerprint": str, "outputs": dict, "info": dict, "versions": dict, "finished": str}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise ValueError(f"its {name} is {content[name]!r}")
    for name, entry in content["outputs"].items():
        found = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(found[0], int) and isinstance(found[1], str)):
            raise ValueError(f"{name} has no size and sha256")
        if name.startswith("/") or ".." in name.split("/") or "://" in name:
            raise ValueError(f"{name} lies outside the run")
    return Manifest(**content)


def say(message: str) -> None:
    """One line for the user, flushed, so that it shows at once in a job's log."""
    print(message, flush=True)
