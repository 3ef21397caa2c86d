"""Check what a run has stored: every file of its finished stages against the hashes in their manifests.

Also the checkpoints that training would go on from, and the trained autoencoders of a comparison. Changes nothing, so
it may run beside a stage and on storage that is read-only. Ends with 1 if anything is damaged, saying what to run.
Reads only storage and name: `python -m pipeline.verify --config runs/digits/config.yaml`.
"""

import hashlib
import time
from collections.abc import Iterator
from typing import NamedTuple

from tqdm import tqdm

from pipeline.__main__ import main
from pipeline.config.errors import PipelineError
from pipeline.remote.progress import Display
from pipeline.store.folder import Folder
from pipeline.store.manifest import say
from pipeline.store.run import STAGES, Run

__all__ = ["Checked", "run"]

_BLOCK = 2**23  # bytes of a file in memory
_WRITTEN_IN = 2.0  # seconds after which a file that is being written has grown
_MADE_FROM = {"data": ("train",), "train": ("samples", "evaluation")}  # stages -> what is made from them


class Checked(NamedTuple):
    """One file that was read again.

    Attributes:
        file: its name under the run's folder.
        size: bytes read.
        fault: what is wrong with it; empty if nothing is.
    """

    file: str
    size: int
    fault: str = ""


def _hash(folder: Folder, name: str) -> tuple[int, str]:
    """(bytes, sha256) of a file, which need not fit in memory."""
    digest, size = hashlib.sha256(), 0
    with folder.open(name) as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _short(error: Exception, folder: Folder) -> str:
    """What is wrong, without the folder's URL, which the verdict gives."""
    return str(error).replace(f"{folder.url}/", "")


def _check(folder: Folder, hashes: dict[str, str]) -> Iterator[Checked]:
    for name, wanted in hashes.items():
        try:
            size, found = _hash(folder, name)
        except PipelineError as error:
            yield Checked(name, 0, _short(error, folder))
            continue
        damaged = f"sha256 {found[:12]}… where it was written with {wanted[:12]}…"
        yield Checked(name, size, "" if found == wanted else damaged)


def _outputs(run: Run, stage: str) -> Iterator[tuple[int, int, Checked]]:
    """(files done, of how many, the last one) of a finished stage."""
    try:
        hashes = {name: entry["sha256"] for name, entry in run.manifest(stage).outputs.items()}
    except PipelineError as error:
        yield 1, 1, Checked(f"{stage}/manifest.json", 0, _short(error, run.folder))
        return
    for done, one in enumerate(_check(run.folder, hashes), 1):
        yield done, len(hashes), one


def _cells(folder: Folder) -> Iterator[Checked]:
    """What the trained autoencoders of a comparison have kept."""
    for record in folder.files("compare/cells/*/record.json"):
        try:
            hashes = folder.read_json(record).get("files", {})
            yield from _check(folder, {f"{record.rpartition('/')[0]}/{name}": hashes[name] for name in hashes})
        except (PipelineError, AttributeError, TypeError) as error:
            yield Checked(record, 0, _short(error, folder))


def _checkpoints(folder: Folder) -> Iterator[Checked]:
    """What training that was stopped would go on from."""
    from pipeline.store.checkpoint import load_state  # imports torch, which nothing else here needs

    def sizes(name: str) -> dict[str, int]:
        return {file: info["size"] for file, info in folder.below(name).items()}

    for state in folder.files("train/ray-*/*/state.json"):
        name = state.rpartition("/")[0]
        before = sizes(name)
        try:
            with (folder / name).local_copy() as path:
                load_state(path, name)
            yield Checked(name, sum(before.values()))
        except (PipelineError, OSError) as error:
            time.sleep(_WRITTEN_IN)
            if (after := sizes(name)) and after == before:  # else a training beside this writes or removes it
                yield Checked(name, 0, _short(error, folder))


def _tell(what: str, checked: list[Checked]) -> list[Checked]:
    """A line for one part of the run and one for each fault; the faults."""
    faults = [one for one in checked if one.fault]
    state = f"{len(faults)} damaged" if faults else "all as written"
    files = "1 file" if len(checked) == 1 else f"{len(checked)} files"
    say(f"{what}: {files}, {tqdm.format_sizeof(sum(one.size for one in checked), 'B')}, {state}")
    for one in faults:
        say(f"  {one.file}: {one.fault}")
    return faults


def run(run: Run) -> dict[str, list[Checked]]:
    """Read every file of a run again and compare it with what its writer has noted.

    Args:
        run: which one; of its configuration only where it lies.

    Returns:
        The files by part of the run: a stage's folder, `checkpoints` or `cells`.

    Raises:
        PipelineError: if anything is missing or damaged, or nothing is there, saying what to run.
    """
    folder = run.folder
    found: dict[str, list[Checked]] = {}
    remedies: list[str] = []
    finished = [stage for stage in STAGES if run.has(stage)]
    display = Display("verify")
    for stage in STAGES:
        module = f"python -m pipeline.{STAGES[stage]}"
        if stage in finished:
            found[stage] = []
            for done, of, one in _outputs(run, stage):
                found[stage].append(one)
                display.update({"phase": stage, "done": done / of}, one.file)
            display.close()
            if _tell(stage, found[stage]):
                remedies.append(f"`{module} --force` writes {stage}/ anew")
        elif any(later in finished for later in _MADE_FROM.get(stage, ())):
            gone = "it is not there, though later stages were made from this one: killed half-way, or deleted"
            found[stage] = _tell(stage, [Checked(f"{stage}/manifest.json", 0, gone)])
            remedies.append(f"`{module}` finishes {stage}/")
    for what, checked, remedy in (
        ("checkpoints", _checkpoints(folder), "training goes back to the newest whole checkpoint by itself"),
        ("cells", _cells(folder), "`python -m pipeline.compare --force {cells}` computes anew what is damaged"),
    ):
        if kept := list(checked):
            found[what] = kept
            if faults := _tell(what, kept):
                # By hash: the cell's name is only known where its record is whole, and in its own configuration.
                keys = sorted({one.file.split("/")[2] for one in faults}) if what == "cells" else []
                remedies.append(remedy.format(cells=" ".join(keys)))
    if not found:
        raise PipelineError(f"{folder.url} holds no finished stage: give storage=… and name=…, or --config")
    if remedies:
        files = [one for part in found.values() for one in part]
        count = sum(bool(one.fault) for one in files)
        after = "then `python -m pipeline.run` brings what follows from it up to date; all with the run's config"
        raise PipelineError("\n  ".join([f"{folder.url}: {count} of {len(files)} files damaged.", *remedies, after]))
    say(f"verify: {folder.url} is whole")
    return found


if __name__ == "__main__":
    main("verify")
