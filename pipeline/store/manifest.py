"""What a finished stage says of itself."""

from typing import Any, NamedTuple

from pipeline.store.folder import fingerprint

__all__ = ["Manifest", "say"]


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


def say(message: str) -> None:
    """One line for the user, flushed, so that it shows at once in a job's log."""
    print(message, flush=True)
