"""A disk that is full or read-only: one clear message, nothing lost, and the same command goes on afterwards."""

import json
import subprocess

import pytest
from processes import here

TRAIN = ["train.epochs=40", "train.checkpoint_epochs=5", "model.width=256", "train.max_failures=0"]


def mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 3 MiB, which `mount -o remount` can change; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)):
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.mark.drill
def test_full_and_read_only_disks_cost_nothing_but_the_message(small_disk, tmp_path, one_ray):
    here("prepare", small_disk)
    out, err = here("train", small_disk, *TRAIN, expect=1)
    assert "No space left on device" in err, out + err
    assert err.count("error: ") == 1
    assert "Traceback" not in out + err
    assert "the same command goes on from the last checkpoint" in err
    assert mount("-o", "remount,ro", str(small_disk))
    _, err = here("train", small_disk, *TRAIN, expect=1)
    assert "Read-only file system" in err
    assert "Traceback" not in err
    assert mount("-o", "remount,rw,size=200m", str(small_disk))
    here("train", small_disk, *TRAIN)
    lines = [json.loads(line) for line in (small_disk / "tiny/train/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["phase"] == "autoencoder"] == list(range(1, 41))

    undisturbed = tmp_path / "undisturbed"
    here("prepare", undisturbed)
    here("train", undisturbed, *TRAIN)
    models = [storage / "tiny/model/model.safetensors" for storage in (small_disk, undisturbed)]
    assert models[0].read_bytes() == models[1].read_bytes()
