"""Cells that failed, and cells that are to be made anew: what is tried again, what --force means, what it says."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from cells_here import compute_here
from processes import ROOT, TINY, here

import pipeline.compare
from ldcvae.training.monitor import NonFiniteLossError
from pipeline.__main__ import main
from pipeline.compare.cells import Cell, read_autoencoder, read_record
from pipeline.compare.schedule import Schedule
from pipeline.compare.select import check_names, possible_cells, remove_cells
from pipeline.compare.stage import _command
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.remote.failures import failure_kind, kind_of_record
from pipeline.store.folder import Folder
from pipeline.store.run import open_run

FEW = ["compare.autoencoders={vae: [], beta_vae: [4, 0.5]}", "compare.generators={gmm: [], gmm_tuned: [5, 20]}"]


def config(*overrides: str) -> Config:
    return load_config(overrides=[*FEW, "compare.seeds=2", *overrides])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "transient"),
        (torch.OutOfMemoryError("CUDA out of memory"), "transient"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "transient"),
        (OSError(5, "Input/output error"), "transient"),
        (ConnectionError("reset by peer"), "transient"),
        (NonFiniteLossError("kl", 3), "final"),
        (FloatingPointError("fd is not finite"), "final"),
        (ValueError("needs components >= 1"), "final"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "final"),
    ],
)
def test_kinds_of_errors(error, kind):
    assert failure_kind(error) == kind


def test_what_ray_has_lost_may_pass_and_what_a_cell_has_raised_may_not():
    from ray import exceptions

    for error in (exceptions.WorkerCrashedError(), exceptions.OutOfMemoryError("x"), exceptions.NodeDiedError("y")):
        assert failure_kind(error) == "transient"
    raised = exceptions.RayTaskError("f", "Traceback", ValueError("got 3")).as_instanceof_cause()
    assert failure_kind(raised) == "final"


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("out of memory: [enforce fail at alloc_cpu.cpp:127]", "transient"),
        ("WorkerCrashedError: The worker died unexpectedly while executing this task.", "transient"),
        ("OSError: [Errno 5] Input/output error", "transient"),
        ("kl is not finite at step 12", "final"),
        ("ValueError: needs components >= 1 and as many rows, got 1000000", "final"),
    ],
)
def test_records_of_older_versions_have_a_kind(tmp_path, reason, kind):
    folder = Folder(str(tmp_path))
    folder.write_json("compare/cells/ab/record.json", {"cell": {}, "failure": reason})
    assert read_record(folder, "compare/cells/ab/record.json")["kind"] == kind
    assert kind_of_record({"failure": reason, "kind": "final"}) == "final"


def test_names_of_cells():
    names = [cell.name for cell in possible_cells(config())]
    assert len(names) == len(set(names)) == (1 + 2) * 2 * (1 + 3)
    assert names[:4] == ["vae/seed0", "vae/seed0/gmm", "vae/seed0/gmm_tuned@5", "vae/seed0/gmm_tuned@20"]
    assert {"beta_vae@4/seed1", "beta_vae@0.5/seed0/gmm_tuned@20"} <= set(names)


def stored(tmp_path, chosen: Config) -> tuple[Folder, list[Cell]]:
    folder, cells = Folder(str(tmp_path)), [*possible_cells(chosen, "data", "features")]
    for cell in cells:
        folder.write_json(cell.record, {"cell": cell.job, "figures": {"fd": 1.0, "seconds": 900.0}})
    return folder, cells


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (["vae/seed0/gmm"], ["vae/seed0/gmm"]),
        (["gmm"], r"/gmm$"),
        (["gmm*"], r"/gmm"),
        (["gmm_tuned"], r"/gmm_tuned@"),
        (["gmm_tuned@5"], r"/gmm_tuned@5$"),
        (["vae/seed0"], r"^vae/seed0"),  # with what stands on it
        (["vae"], r"^vae/"),
        (["beta_vae"], r"^beta_vae@"),
        (["beta_vae@4/seed1/*", "vae/*/gmm"], r"^beta_vae@4/seed1/|^vae/seed\d/gmm$"),
        (["seed1"], r"/seed1"),
        (["*"], r""),
    ],
)
def test_force_deletes_what_it_names_and_says_so_first(tmp_path, capsys, patterns, gone):
    folder, cells = stored(tmp_path, config())
    names = {cell.key: cell.name for cell in cells}
    wanted = set(gone) if isinstance(gone, list) else {name for name in names.values() if re.search(gone, name)}
    check_names(config(), folder, patterns)
    remove_cells(folder, cells, patterns)
    left = {names[file.split("/")[2]] for file in folder.files("compare/cells/*/record.json")}
    assert set(names.values()) - left == wanted
    hours = f"{len(wanted) / 4:.1f} hours" if len(wanted) > 1 else None
    (said,) = capsys.readouterr().out.splitlines()
    assert f"--force deletes {len(wanted)} cell" in said
    assert (hours or "0.2 hours") in said


def test_a_hash_names_a_cell_of_another_configuration_too(tmp_path, capsys):
    folder, cells = stored(tmp_path, config("train.epochs=3"))
    mine = [*possible_cells(config(), "data", "features")]
    key = cells[0].key
    assert key not in {cell.key for cell in mine}
    check_names(config(), folder, [key])
    remove_cells(folder, mine, [key])
    left = {file.split("/")[2] for file in folder.files("compare/cells/*/record.json")}
    assert left == {cell.key for cell in cells if cell.job.get("parent") != key} - {key}
    assert "deletes 4 cells" in capsys.readouterr().out


@pytest.mark.parametrize(("pattern", "near"), [("gmx", "gmm"), ("vea/seed0", "vae/seed0"), ("", "vae"), ("0af3", "")])
def test_what_names_no_cell_is_refused_with_what_is_called_nearly_so(tmp_path, pattern, near):
    with pytest.raises(ConfigError, match=f"no cell is called '{pattern}'; close to it: .*{near}"):
        check_names(config(), Folder(str(tmp_path)), ["gmm", pattern])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"force": False, "cells": [], "retry_failed": False}),
        (["--force"], {"force": True, "cells": [], "retry_failed": False}),
        (["--force", "gmm*", "vae/seed0"], {"force": True, "cells": ["gmm*", "vae/seed0"], "retry_failed": False}),
        (["--retry-failed"], {"force": False, "cells": [], "retry_failed": True}),
    ],
)
def test_the_command_line_tells_cells_from_overrides(tmp_path, monkeypatch, words, expected):
    got = []
    monkeypatch.setattr(pipeline.compare, "run", lambda run, **named: got.append((run.config, named)))
    main("compare", [f"storage={tmp_path}", "name=a", *words, "compare.seeds=7"])
    assert [(one.compare.seeds, named) for one, named in got] == [(7, expected)]


def test_the_page_names_a_command_that_makes_nothing_anew(monkeypatch):
    words = [
        "x/compare/__main__.py",
        "a=1",
        "--force",
        "gmm*",
        "vae/seed0",
        "b=2",
        "--config",
        "c.yaml",
        "--retry-failed",
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert _command() == "python -m pipeline.compare a=1 b=2 --config c.yaml"


def test_a_damaged_cell_names_the_command_that_force_takes(tmp_path):
    run = open_run(config(f"storage={tmp_path}"))
    parent, child = [*possible_cells(run.config, "data", "features")][:2]
    run.folder.write(parent.record, b"{")
    with pytest.raises(PipelineError, match=f"`python -m pipeline.compare --force {parent.key}`"):
        read_record(run.folder, parent.record)
    check_names(run.config, run.folder, [parent.key])
    files = {"model.safetensors": "00", "encodings.safetensors": "00"}
    run.folder.write_json(parent.record, {"cell": parent.job, "figures": {"fd": 1.0}, "files": files})
    run.folder.write(f"{parent.folder}/model.safetensors", b"x")
    with pytest.raises(PipelineError, match=f"is damaged.*`python -m pipeline.compare --force {parent.key}`"):
        read_autoencoder(run, child, (1, 8, 8))


def test_a_kept_failure_is_computed_anew_if_it_may_pass(tmp_path):
    folder = Folder(str(tmp_path))
    schedule = Schedule.__new__(Schedule)
    schedule.folder = folder
    cell = Cell("ab", {"name": "vae", "setting": None, "seed": 0})
    for kind, retry, kept in (("transient", False, False), ("final", False, True), ("final", True, False)):
        schedule.retry_failed = retry
        folder.write_json(cell.record, {"cell": cell.job, "failure": "x", "kind": kind})
        assert (schedule._kept(cell) is not None) == kept


FRAGILE = """
import os, signal
from pathlib import Path
from ldcvae.variants import GENERATORS, Generator

BROKEN = Path(os.environ["BROKEN"])

def fit(how):
    def fit(fitting):
        if BROKEN.exists():
            how()
        return GENERATORS["encoder"].fit(fitting)
    return fit

def memory():
    raise MemoryError

def wrong():
    raise ValueError("it is wrong")

for name, how in (("hungry", memory), ("mistaken", wrong), ("shot", lambda: os.kill(os.getpid(), signal.SIGKILL))):
    GENERATORS.register(Generator(name, name, fit(how), kind="closed"))
"""


@pytest.mark.drill
def test_what_may_pass_is_tried_again_and_what_may_not_when_that_is_asked_for(tmp_path):
    (tmp_path / "fragile.py").write_text(FRAGILE)
    broken = tmp_path / "broken"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "BROKEN": str(broken)}
    chosen = ["compare.autoencoders={vae: []}", "compare.generators={gmm: [], hungry: [], mistaken: [], shot: []}"]
    small = ["compare.seeds=1", "compare.selection_images=100", "train.epochs=2", "evaluate.draws=1"]

    def compare(*words: str, expect: int = 0) -> str:
        command = [sys.executable, "-m", "pipeline.compare", "--plugin", "fragile", *TINY, "storage=runs"]
        command += [*chosen, *small, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    folder = tmp_path / "runs/tiny/compare"

    def cells() -> dict[str, dict]:
        records = [json.loads(path.read_text()) for path in folder.glob("cells/*/record.json")]
        return {Cell("", record["cell"]).name: record for record in records}

    def rows() -> set[str]:
        return {row["generator"] for row in json.loads((folder / "results.json").read_text())["rows"]}

    def made() -> dict[str, float]:
        return {name: record["finished"] for name, record in cells().items()}

    broken.touch()
    said = compare()
    assert rows() == {"gmm"}
    kinds = {name.rpartition("/")[2]: record.get("kind") for name, record in cells().items()}
    assert kinds == {"seed0": None, "gmm": None, "hungry": "transient", "mistaken": "final", "shot": "transient"}
    assert re.search(r"vae/seed0/hungry failed: out of memory \(peak .* GiB, limit .*\); the next run tries it", said)
    assert re.search(r"vae/seed0/shot failed: its process was killed or crashed.*, 3 times; the next run", said)
    assert "vae/seed0/mistaken failed: ValueError: it is wrong; --retry-failed tries it again" in said
    assert "raylet" not in said  # one line for each, and no page of Ray's
    page = (folder / "index.html").read_text()
    assert "<code>vae/seed0/hungry</code>; the next run tries it again" in page

    before = made()
    broken.unlink()
    said = compare()
    assert "2 failed cells are tried again" in said
    assert rows() == {"gmm", "hungry", "shot"}
    after = made()
    assert {name for name in after if after[name] != before[name]} == {"vae/seed0/hungry", "vae/seed0/shot"}
    assert "compare: up to date" in compare()

    assert "1 failed cell is tried again" in compare("--retry-failed")
    assert rows() == {"gmm", "hungry", "shot", "mistaken"}
    assert "compare: up to date" in compare("--retry-failed")


def test_only_what_is_named_is_made_anew(tmp_path, monkeypatch):
    compute_here(monkeypatch)
    few = ["compare.autoencoders={vae: []}", "compare.generators={gmm: [], gaussian: [], encoder: []}"]
    few += ["compare.seeds=1", "compare.selection_images=100", "train.epochs=2", "evaluate.draws=1"]

    def compare(*words: str, expect: int = 0) -> str:
        return "".join(here("compare", tmp_path, *few, *words, expect=expect))

    def made() -> dict[str, float]:
        paths = (tmp_path / "tiny/compare").glob("cells/*/record.json")
        records = [json.loads(path.read_text()) for path in paths]
        return {Cell("", record["cell"]).name: record["finished"] for record in records}

    compare()
    before = made()
    assert "compare: up to date" in compare()
    said = compare("--force")
    assert "4 cells, 4 of them kept from before" in said
    assert "--force '*' computes them anew" in said
    assert made() == before
    said = compare("--force", "gm*")
    assert re.search(r"--force deletes 1 cell, \d+ seconds of computing: vae/seed0/gmm\n", said)
    after = made()
    assert {name for name in after if after[name] != before[name]} == {"vae/seed0/gmm"}
    said = compare("--force", "vae/seed0")
    assert "--force deletes 4 cells" in said
    assert "3 of them stand on autoencoders that are made anew" in said
    assert not made().items() & before.items()
    assert "close to it: gmm" in compare("--force", "gmx", expect=2)
