"""One process at a time in a run's folder: two at once, dead holders, lost leases, S3."""

import os
import signal
import subprocess
import sys
import time

import pytest
from processes import ROOT, here, start, wait_for

from pipeline.__main__ import _heeded_interrupts
from pipeline.config.errors import PipelineError
from pipeline.store import lease
from pipeline.store.folder import Folder
from pipeline.store.lease import LOCK, held


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "run"))


def holder(folder, **changes):
    """A lock as another machine's process would have left it."""
    content = {"owner": "other", "machine": "elsewhere", "pid": 7, "born": "1", "what": "train", "since": "then"}
    folder.write_json(LOCK, content | {"renewed": time.time()} | changes)


def test_a_second_process_is_told_who_works_there(folder):
    holder(folder)
    with (
        pytest.raises(PipelineError, match=r"in use: process 7 on elsewhere .* since then \(train\)"),
        held(folder, "x"),
    ):
        pass
    assert folder.read_json(LOCK)["owner"] == "other"


def test_a_holder_that_is_not_renewed_is_dead_within_a_minute(folder):
    assert lease.EXPIRY < 60
    holder(folder, renewed=time.time() - lease.EXPIRY - 1)
    with held(folder, "report"):
        assert folder.read_json(LOCK)["what"] == "report"
    assert not folder.exists(LOCK)


def test_a_process_seen_dead_on_this_machine_is_followed_at_once(folder):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    holder(folder, machine=lease._machine(), pid=gone.pid, born="5")
    with held(folder, "report"):
        pass
    # A process number that is used again is another process.
    holder(folder, machine=lease._machine(), pid=os.getpid(), born="5")
    with held(folder, "report"):
        pass
    holder(folder, machine=lease._machine(), pid=os.getpid(), born=lease._born(os.getpid()))
    with pytest.raises(PipelineError, match="in use"), held(folder, "report"):
        pass


def test_a_process_that_has_just_been_killed_is_followed(folder):
    """Its parent has not asked for it, so that it is still listed (a zombie), or it is still ending."""
    code = "import sys; sys.stdin.read()"
    for wait in (0.5, 0):
        killed = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        holder(folder, machine=lease._machine(), pid=killed.pid, born=lease._born(killed.pid))
        killed.kill()
        time.sleep(wait)
        with held(folder, "report"):
            assert folder.read_json(LOCK)["what"] == "report"
        killed.communicate()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"renewed": "soon"}', b"\xff"])
def test_a_lock_that_cannot_be_read_is_nobodys(folder, content):
    folder.write(LOCK, content)
    with held(folder, "train"):
        assert folder.read_json(LOCK)["what"] == "train"


def test_a_holder_renews(folder, monkeypatch):
    monkeypatch.setattr(lease, "_RENEWED_EVERY", 0.05)
    with held(folder, "train"):
        first = folder.read_json(LOCK)["renewed"]
        wait_for(lambda: folder.read_json(LOCK)["renewed"] > first, "renewal", 10)


def test_a_process_that_lost_its_lease_stops(folder):
    """It was suspended, and another went on: two must not write."""
    code = (
        "import sys, time\nfrom pipeline.store import lease\nfrom pipeline.store.folder import Folder\n"
        "lease._RENEWED_EVERY = 0.05\nwith lease.held(Folder(sys.argv[1]), 'x'):\n"
        "    print('in', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder.url], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    holder(folder)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "another process has taken over" in err
    assert folder.read_json(LOCK)["owner"] == "other"  # not its to remove


def test_of_many_at_once_one_gets_in(tmp_path):
    code = (
        "import sys\nfrom pipeline.store.folder import Folder\nfrom pipeline.store.lease import held\n"
        "from pipeline.config.errors import PipelineError\ntry:\n    with held(Folder(sys.argv[1]), 'x'):\n"
        "        print('in', flush=True); sys.stdin.read()\nexcept PipelineError:\n    print('out', flush=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    several = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = sorted(process.stdout.readline().strip() for process in several)  # whoever is in waits for all others
    for process in several:
        process.communicate(timeout=60)
    assert said == ["in", *["out"] * 5]


def test_an_interrupt_that_python_swallows_comes_again():
    class Deaf:
        def __del__(self):
            raise KeyboardInterrupt

    def swallow_one():
        Deaf()
        time.sleep(30)

    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), _heeded_interrupts():
            swallow_one()
    finally:
        signal.signal(signal.SIGINT, kept)


@pytest.mark.slow
def test_a_failure_and_ctrl_c_give_the_run_back(tmp_path):
    here("train", tmp_path, expect=1)  # there are no data
    assert not (tmp_path / "tiny" / LOCK).exists()
    # A parallel test's process ignores SIGINT, and so would its children.
    kept = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = start("run", tmp_path)
    finally:
        signal.signal(signal.SIGINT, kept)
    wait_for(lambda: (tmp_path / "tiny/data/manifest.json").exists(), "data")
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=900)
    # Where the signal strikes an import, Python ends by it in the end; a shell shows 130 for either.
    assert process.returncode in (130, -signal.SIGINT), err
    assert "interrupted: the same command goes on" in err
    assert not (tmp_path / "tiny" / LOCK).exists()


def test_a_lock_whose_answer_was_lost_is_our_own(folder, monkeypatch):
    create = Folder.create

    def answered_twice(self, name, content):
        create(self, name, content)
        return create(self, name, content)  # as the storage's client does where the first answer does not arrive

    monkeypatch.setattr(Folder, "create", answered_twice)
    with held(folder, "train"):
        assert folder.read_json(LOCK)["what"] == "train"
    assert not folder.exists(LOCK)
