"""The stage: splits, shards, manifest, and when it runs again."""

import os
import subprocess
import sys
import time
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from pipeline import prepare
from pipeline.config.errors import PipelineError
from pipeline.config.load import parse_config
from pipeline.config.sections import DataConfig
from pipeline.prepare import write
from pipeline.prepare.splits import cut_splits
from pipeline.store.data.shards import SPLITS, load_split
from pipeline.store.folder import sha256
from pipeline.store.run import open_run


def config(tmp_path, seed=0, **data):
    return parse_config({"name": "run", "storage": str(tmp_path / "runs"), "seed": seed, "data": data})


def run(settings, force=False):
    """`python -m pipeline.prepare`: every command opens the run anew."""
    return prepare.run(open_run(settings), force)


@pytest.fixture
def pictures(tmp_path):
    """30 grey images of 4x4, each of its own shade, in two classes."""
    folder = tmp_path / "pictures"
    for number in range(30):
        path = folder / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 8 * number).save(path)
    return folder


def shades(settings):
    opened = open_run(settings)
    return {split: load_split(opened, split).pixels[:, 0, 0, 0].tolist() for split in SPLITS}


def files(settings):
    folder = open_run(settings).folder
    return {name: folder.read(name) for name in folder.files("data/*.parquet")}


def test_digits_end_to_end(tmp_path, capsys):
    settings = config(tmp_path, images_per_shard=500)
    manifest = run(settings)
    info = manifest.info
    assert info["source"] == "digits"
    assert info["shape"] == [1, 8, 8]
    assert info["counts"] == {"train": 1294, "validation": 144, "test": 359}
    assert info["classes"] == list("0123456789")
    assert sum(info["label_counts"].values()) == 1797
    assert info["label_counts"]["0"] == 178
    assert (info["skipped"], info["skipped_count"]) == ([], 0)
    opened = open_run(settings)
    folder = opened.folder
    assert opened.manifest("data") == manifest
    groups = [f"data/row_groups/{split}.json" for split in ("test", "train", "validation")]
    assert sorted(manifest.outputs) == [*groups, *folder.files("data/*.parquet")]
    assert len([name for name in manifest.outputs if "train-" in name]) == 3
    for name, entry in manifest.outputs.items():
        assert sha256(folder.read(name)) == entry["sha256"]
    train = load_split(opened, "train")
    assert train.pixels.shape == (1294, 1, 8, 8)
    assert info["pixel_mean"] == pytest.approx(train.pixels.double().mean().item() / 255, abs=1e-12)
    assert len(set(train.labels[:50].tolist())) > 5  # shuffled, not sorted by class
    assert "data: 1,797 images 1x8x8, 10 classes: train 1,294, validation 144, test 359\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "counts"),
    [
        ({"train": 100}, {"train": 72, "validation": 8, "test": 20}),
        ({"train": 100, "test": 7}, {"train": 90, "validation": 10, "test": 7}),
        ({"train": 100, "validation": 9}, {"train": 80, "validation": 9, "test": 20}),
        ({"train": 100, "validation": 9, "test": 7}, {"train": 100, "validation": 9, "test": 7}),
        ({"train": 3}, {"train": 1, "validation": 1, "test": 1}),
    ],
)
def test_splits_are_disjoint_complete_and_keep_the_sources_own(own, counts):
    splits = np.concatenate([np.full(count, name) for name, count in own.items()])
    parts = cut_splits(splits, DataConfig(), seed=1)
    assert {name: len(indices) for name, indices in parts.items()} == counts
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(splits)))
    for name in set(own) - {"train"}:
        assert (splits[parts[name]] == name).all()


@pytest.mark.parametrize("own", [["train"] * 2, ["test"] * 50, []])
def test_too_few_images_is_an_error(own):
    with pytest.raises(PipelineError, match=f"^{len(own)} images are too few"):
        cut_splits(np.array(own), DataConfig(), seed=0)


def test_the_seed_fixes_the_splits(tmp_path, pictures):
    run(first := config(tmp_path / "1", source="folder", path=str(pictures)))
    run(again := config(tmp_path / "2", source="folder", path=str(pictures)))
    run(other := config(tmp_path / "3", seed=1, source="folder", path=str(pictures)))
    assert files(first) == files(again)  # to the byte
    one, two = shades(first), shades(other)
    assert sorted(chain(*one.values())) == sorted(chain(*two.values())) == [8 * number for number in range(30)]
    assert set(one["test"]) != set(two["test"])
    assert one["train"] != sorted(one["train"])


def test_max_train_images_leaves_the_other_splits_alone(tmp_path, pictures):
    run(whole := config(tmp_path / "1", source="folder", path=str(pictures)))
    run(part := config(tmp_path / "2", source="folder", path=str(pictures), max_train_images=5))
    whole_shades, part_shades = shades(whole), shades(part)
    assert part_shades["train"] == whole_shades["train"][:5]
    assert part_shades["test"] == whole_shades["test"]
    assert part_shades["validation"] == whole_shades["validation"]


def test_skipped_files_are_in_the_manifest(tmp_path, pictures, capsys):
    (pictures / "a" / "bad.png").write_text("text")
    (pictures / "notes.txt").write_text("not looked at")
    info = run(config(tmp_path, source="folder", path=str(pictures), on_bad_image="skip")).info
    assert info["skipped"] == [
        {"file": "a/bad.png", "reason": "not a PNG, JPEG, WEBP, BMP, TIFF or GIF image (4 bytes)"}
    ]
    assert info["skipped_count"] == 1
    assert info["passed_over"] == {".txt": 1}
    assert "; 1 files skipped; passed over: 1 of ending .txt\n" in capsys.readouterr().out


def test_runs_again_only_when_something_changed(tmp_path, pictures, capsys):
    settings = config(tmp_path, source="folder", path=str(pictures))
    first = run(settings)
    assert run(settings) == first
    assert "data: up to date" in capsys.readouterr().out
    assert run(settings, force=True).finished >= first.finished
    assert "up to date" not in capsys.readouterr().out
    later = time.time() + 5
    os.utime(pictures / "a" / "00.png", (later, later))
    touched = run(settings)
    assert touched.fingerprint != first.fingerprint
    assert touched.digest == first.digest  # the content is the same, so later stages need not run
    assert run(config(tmp_path, source="folder", path=str(pictures), image_size=8)).info["shape"] == [1, 8, 8]
    assert run(config(tmp_path, seed=3, source="folder", path=str(pictures))).fingerprint != first.fingerprint
    (pictures / "a" / "00.png").unlink()
    assert sum(run(settings).info["counts"].values()) == 29


def test_shards_of_an_earlier_run_go_away(tmp_path, pictures):
    settings = config(tmp_path, source="folder", path=str(pictures), images_per_shard=2)
    many = run(settings)
    few = run(config(tmp_path, source="folder", path=str(pictures)))
    assert len(few.outputs) == 6 < len(many.outputs)
    assert open_run(settings).folder.files("data/*.parquet") == [name for name in few.outputs if "parquet" in name]


def test_killed_in_the_middle_leaves_no_manifest(tmp_path, pictures, monkeypatch):
    settings = config(tmp_path, source="folder", path=str(pictures))
    run(settings)

    def die_at_test(folder, split, *rest):
        if split == "test":
            raise KeyboardInterrupt
        return write_split(folder, split, *rest)

    write_split = write.write_split
    with monkeypatch.context() as patch:
        patch.setattr(write, "write_split", die_at_test)
        with pytest.raises(KeyboardInterrupt):
            run(settings, force=True)
    with pytest.raises(PipelineError, match=r"has not finished: run `python -m pipeline\.prepare`"):
        load_split(open_run(settings), "train")
    assert run(settings).info["counts"]["test"] == 6
    assert len(load_split(open_run(settings), "test").pixels) == 6


def test_a_run_can_be_the_source_of_another(tmp_path, pictures):
    run(first := config(tmp_path / "1", source="folder", path=str(pictures)))
    data = f"{open_run(first).folder.url}/data"
    info = run(second := config(tmp_path / "2", source="parquet", path=data)).info
    assert info["classes"] == ["a", "b"]
    one, two = shades(first), shades(second)
    assert two["test"] == one["test"]
    assert sorted(two["train"]) == sorted(one["train"])


def prepare_command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "pipeline.prepare", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_command_line(tmp_path):
    """Run as `__main__`: exit status, one summary, nothing else on the terminal."""
    done = prepare_command("name=here", "data.max_train_images=100", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == "data: 603 images 1x8x8, 10 classes: train 100, validation 144, test 359"
    assert second.startswith("data: done in ")
    assert (tmp_path / "runs/here/data/manifest.json").exists()
    failed = prepare_command("data.source=folder", "data.path=nowhere", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: data.path=nowhere: there is no such file or folder")
