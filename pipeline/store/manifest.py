"""What every stage has in common: a folder, a fingerprint of its inputs, and a manifest written last."""

import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

from pipeline.config.load import Config, dump_yaml
from pipeline.config.errors import PipelineError
from pipeline.store.folder import Folder, fingerprint, sha256

__all__ = ["Manifest", "read_manifest", "run_folder", "run_stage", "say", "versions"]


class Manifest(NamedTuple):
    """What a finished stage says of itself, kept as `<stage>/manifest.json`.

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


def run_folder(config: Config) -> Folder:
    """The run's folder: `<storage>/<name>`."""
    return Folder(config.storage) / config.name


def versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    names = ("ldcvae", "torch", "torchvision", "ray", "pyarrow", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def read_manifest(run: Folder, stage: str, made_by: str) -> Manifest:
    """The manifest of a finished stage.

    Args:
        run: the run's folder.
        stage: name of the stage's folder.
        made_by: module to name in the error, e.g. "pipeline.prepare".

    Raises:
        PipelineError: if the stage has not finished.
    """
    if not run.exists(f"{stage}/manifest.json"):
        raise PipelineError(
            f"{run.url}/{stage}/manifest.json does not exist, so that stage has not finished: "
            f"run `python -m {made_by}` with the same config first, or `python -m pipeline.run` for all stages"
        )
    content = run.read_json(f"{stage}/manifest.json")
    if not isinstance(content, dict) or set(content) != set(Manifest._fields):
        raise PipelineError(f"{run.url}/{stage}/manifest.json is not a manifest: run the stage again with --force")
    return Manifest(**content)


def _is_current(run: Folder, stage: str, wanted: str) -> Manifest | None:
    """The manifest, if it matches the inputs and every output it names is there in its full size."""
    if not run.exists(f"{stage}/manifest.json"):
        return None
    manifest = read_manifest(run, stage, "")
    if manifest.fingerprint != wanted:
        return None
    for name, entry in manifest.outputs.items():
        if not run.exists(name) or run.size(name) != entry["bytes"]:
            return None
    return manifest


def run_stage(
    config: Config,
    stage: str,
    depends_on: Mapping[str, Any],
    work: Callable[[Folder, str], tuple[list[str], dict[str, Any]]],
    force: bool = False,
) -> Manifest:
    """Run `work` unless the stage is already done for the same inputs; write its manifest last.

    Args:
        config: the run's configuration, written to `config.yaml` first.
        stage: name of the stage and of its folder.
        depends_on: everything that decides the outputs: config sections, digests of earlier stages.
        work: `(run folder, fingerprint) -> (paths of the outputs under the run folder, figures)`.
        force: run even when the stage is current.

    Returns:
        The manifest, new or as it was.
    """
    run = run_folder(config)
    wanted = fingerprint({"version": version("ldcvae"), "stage": stage, **depends_on})
    if not force and (current := _is_current(run, stage, wanted)) is not None:
        say(f"{stage}: up to date, {run.url}/{stage}")
        return current
    run.write("config.yaml", dump_yaml(config).encode())
    # From here until the end the folder's content is in flux: without a manifest nobody takes it for whole.
    run.remove(f"{stage}/manifest.json")
    started = time.perf_counter()
    names, info = work(run, wanted)
    outputs = {}
    for name in sorted(names):
        content = run.read(name)
        outputs[name] = {"bytes": len(content), "sha256": sha256(content)}
    seconds = round(time.perf_counter() - started, 2)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(stage, wanted, outputs, info, versions(), finished, seconds)
    run.write_json(f"{stage}/manifest.json", manifest._asdict())
    say(f"{stage}: done in {seconds:.0f} s, {run.url}/{stage}")
    return manifest
