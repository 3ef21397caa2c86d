"""`python -m pipeline.verify`: what it finds, what it says to do, and that it leaves everything as it is."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from processes import ROOT

from pipeline.__main__ import main
from pipeline.config.errors import PipelineError
from pipeline.config.sections import Config
from pipeline.store.checkpoint import save_state
from pipeline.store.folder import sha256
from pipeline.store.lease import held
from pipeline.store.run import open_run
from pipeline.verify import run as verify


@pytest.fixture
def kept(tmp_path):
    """A run: a copy of the one of version 0.1, with a checkpoint and a cell of a comparison."""
    folder = tmp_path / "run"
    shutil.copytree(ROOT / "tests/data/run-0.1", folder)
    (folder / "train/ray-0/autoencoder_1").mkdir(parents=True)
    save_state({"step": 1, "weights": torch.ones(3)}, folder / "train/ray-0/autoencoder_1")
    (folder / "compare/cells/abc").mkdir(parents=True)
    (folder / "compare/cells/abc/model.safetensors").write_bytes(b"weights")
    record = {"files": {"model.safetensors": sha256(b"weights")}}
    (folder / "compare/cells/abc/record.json").write_text(json.dumps(record))
    return open_run(Config(storage=str(tmp_path), name="run"))


def content(run) -> dict[str, bytes]:
    root = Path(run.folder.url)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_whole_run(kept, capsys):
    before = content(kept)
    found = verify(kept)
    listed = {name for stage in ("data", "train", "samples", "evaluation") for name in kept.manifest(stage).outputs}
    checked = {one.file for part in found.values() for one in part}
    assert checked == listed | {"train/ray-0/autoencoder_1", "compare/cells/abc/model.safetensors"}
    sizes = {one.file: one.size for one in found["train"]}
    assert sizes["model/config.json"] == len(before["model/config.json"])
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        *("data", "train", "samples", "evaluation", "checkpoints", "cells", "verify")
    ]
    assert said[-1].endswith("/run is whole")
    assert content(kept) == before


@pytest.mark.parametrize(
    ("name", "part", "remedy"),
    [
        ("data/train-00000.parquet", "data", "`python -m pipeline.prepare --force` writes data/ anew"),
        ("model/model.safetensors", "train", "`python -m pipeline.train --force` writes train/ anew"),
        ("train/metrics.jsonl", "train", "`python -m pipeline.train --force` writes train/ anew"),
        ("evaluation/metrics.json", "evaluation", "`python -m pipeline.evaluate --force` writes evaluation/ anew"),
        ("train/ray-0/autoencoder_1", "checkpoints", "training goes back to the newest whole checkpoint by itself"),
        ("compare/cells/abc/model.safetensors", "cells", "`python -m pipeline.compare --force abc`"),
    ],
)
@pytest.mark.parametrize("how", ["one bit", "cut short", "deleted"])
def test_damage_is_named_with_its_remedy(kept, capsys, name, part, remedy, how):
    path = Path(kept.folder.url) / name
    if path.is_dir():
        path /= "tensors.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged if how == "one bit" else damaged[:-1])
    if how == "deleted":
        path.unlink()
    with pytest.raises(PipelineError, match=r"1 of \d+ files damaged") as error:
        verify(kept)
    assert remedy in str(error.value)
    said = capsys.readouterr().out
    assert f"\n  {name}: " in said
    assert f"{part}: " in said
    assert said.count("1 damaged") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"stage": 3}', "\xff"])
def test_a_damaged_manifest(kept, capsys, text):
    (Path(kept.folder.url) / "samples/manifest.json").write_text(text, "latin-1")
    with pytest.raises(PipelineError, match=r"python -m pipeline\.sample --force"):
        verify(kept)
    assert "\n  samples/manifest.json: samples/manifest.json is damaged" in capsys.readouterr().out


def test_a_stage_without_manifest_below_finished_ones(kept, capsys):
    (Path(kept.folder.url) / "train/manifest.json").unlink()
    with pytest.raises(PipelineError, match=r"`python -m pipeline\.train` finishes train/"):
        verify(kept)
    assert "train/manifest.json: it is not there" in capsys.readouterr().out


def test_the_command_needs_no_lock_and_writes_nothing(kept, capsys):
    arguments = [f"storage={Path(kept.folder.url).parent}", "name=run"]
    with held(kept.folder, "train"):
        before = content(kept)
        main("verify", arguments)
        assert content(kept) == before
    if os.getuid():  # root may write anywhere
        os.chmod(kept.folder.url, 0o555)
        main("verify", arguments)
    (Path(kept.folder.url) / "model/config.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main("verify", arguments)
    assert ended.value.code == 1
    assert "python -m pipeline.train --force" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main("verify", [*arguments, "--force"])
    assert ended.value.code == 2


def test_a_checkpoint_that_a_training_writes_or_removes_meanwhile_is_not_damaged(kept, monkeypatch):
    path = Path(kept.folder.url) / "train/ray-0/autoencoder_1"
    whole = (path / "tensors.safetensors").read_bytes()
    for meanwhile in (lambda: (path / "tensors.safetensors").write_bytes(whole), lambda: shutil.rmtree(path)):
        (path / "tensors.safetensors").write_bytes(whole[:-1])
        monkeypatch.setattr("time.sleep", lambda _, meanwhile=meanwhile: meanwhile())
        assert "checkpoints" not in verify(kept)


def test_an_empty_folder(tmp_path):
    with pytest.raises(PipelineError, match=r"holds no finished stage: give storage=… and name=…"):
        verify(open_run(Config(storage=str(tmp_path), name="none")))
