"""Storage: whole files or none, hashes, errors that name the file; the run that is made of them."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import parse_config
from pipeline.config.together import url_mistake
from pipeline.store.folder import Folder, fingerprint, sha256
from pipeline.store.manifest import Output
from pipeline.store.run import open_run

ROOT = Path(__file__).parents[2]


def test_write_read_list_remove(tmp_path):
    folder = Folder(str(tmp_path / "a [1]*?"))  # a folder's own name is no glob pattern
    folder.write("deep/x.bin", b"\0\xff")
    folder.write_json("deep/y.json", {"a": [1, None]})
    assert folder.read("deep/x.bin") == b"\0\xff"
    assert folder.read_json("deep/y.json") == {"a": [1, None]}
    assert folder.files("deep/*") == ["deep/x.bin", "deep/y.json"]
    assert (folder / "deep").exists("x.bin")
    folder.remove("deep")
    folder.remove("deep")
    assert not folder.exists("deep")


def test_urls_and_relative_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Folder("runs/").url == str(tmp_path / "runs")
    folder = Folder(f"file://{tmp_path}/runs")
    folder.write("x", b"1")
    assert Folder("runs").read("x") == b"1"
    assert folder.is_local


def test_a_failed_write_leaves_neither_file_nor_remains(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    folder.write("x", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PipelineError, match=r"cannot write .*/x: No space left on device"):
            folder.write("x", b"new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            folder.write("x", b"new")
    assert folder.read("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_remains_of_a_killed_write_are_not_listed(tmp_path):
    (tmp_path / ".partial-abc").write_bytes(b"half")
    folder = Folder(str(tmp_path))
    folder.write("x", b"")
    assert folder.files("*") == ["x"]


def test_files_follow_the_umask(tmp_path):
    Folder(str(tmp_path)).write("x", b"")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PipelineError, match=r"cannot write .*/y: Permission denied"):
            Folder(str(tmp_path)).write("y", b"")
        with pytest.raises(PipelineError, match=r"cannot remove .*/x: Permission denied"):
            Folder(str(tmp_path)).remove("x")
    finally:
        tmp_path.chmod(0o700)


def test_a_storage_that_refuses_is_named(tmp_path, monkeypatch):
    """What a read-only file system says, also where the tests run as root."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PipelineError, match=r"cannot write .*file/run/config\.yaml: Not a directory"):
        open_run(parse_config({"storage": str(tmp_path / "file"), "name": "run"})).stage(
            "data", {}, lambda fingerprint: ([], {})
        )
    folder = Folder(str(tmp_path))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for method in ("cat_file", "rm"):
        monkeypatch.setattr(LocalFileSystem, method, refuse)
    with pytest.raises(PipelineError, match=r"cannot read .*/file: Permission denied"):
        folder.read("file")
    with pytest.raises(PipelineError, match=r"cannot remove .*/file: Permission denied"):
        folder.remove("file")


def test_missing_damaged_and_malformed_files_are_named(tmp_path):
    folder = Folder(str(tmp_path))
    with pytest.raises(PipelineError, match="/nothing does not exist"):
        folder.read("nothing")
    folder.write("x.json", b"{")
    with pytest.raises(PipelineError, match=r"x\.json is not valid JSON"):
        folder.read_json("x.json")
    assert folder.read_verified("x.json", sha256(b"{")) == b"{"
    with pytest.raises(PipelineError, match=r"x\.json is damaged"):
        folder.read_verified("x.json", sha256(b"}"))


@pytest.mark.parametrize("url", ["memory://runs", "simplecache::memory://runs"])
def test_memory_is_refused(url):
    with pytest.raises(ConfigError, match="memory:// lives in one process"):
        Folder(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/runs",
        "s3://bucket/runs?secret_key=hunter2",
        "s3://bucket/runs?a=1&aws_access_key_id=hunter2",
        "abfs://c/runs?sig=hunter2",
        "abfs://key:hunter2@account/runs",
        "s3:/key:hunter2@bucket/runs",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match="credentials in a URL") as error:
        Folder(url)
    assert "hunter2" not in str(error.value)


def test_at_signs_and_words_in_paths_are_no_credentials():
    assert Folder("s3://bucket/me@home/token").url == "s3://bucket/me@home/token"
    assert Folder("https://host/x?design=1").url.endswith("design=1")
    for chain in ("", "simplecache::"):
        assert url_mistake(f"{chain}abfs://container@account.dfs.core.windows.net/runs") == ""
    assert "did you mean file:///me@work/x?" in url_mistake("file:/me@work/x")


def test_unknown_protocol_is_a_config_error():
    with pytest.raises(ConfigError, match="nosuch"):
        Folder("nosuch://x").exists("y")


def test_local_copy_of_a_local_folder_is_itself(tmp_path):
    with Folder(str(tmp_path)).local_copy() as path:
        assert path == tmp_path


def test_fingerprint_sees_values_not_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(float("nan"))


def test_a_part_of_a_file_can_be_read(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("a", b"0123456789")
    with folder.open("a") as file:
        file.seek(4)
        assert file.read(3) == b"456"
    with pytest.raises(PipelineError, match=r"/b does not exist"), folder.open("b"):
        pass
    with pytest.raises(PipelineError, match=r"cannot read .*/a: gone"), folder.open("a"):
        raise OSError("gone")


def test_of_two_that_create_a_file_one_succeeds_without_hard_links_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    folder = Folder(str(tmp_path))
    assert folder.create("lock", b"1")
    assert not folder.create("lock", b"2")
    assert (folder.read("lock"), folder.files("*"), os.listdir(tmp_path)) == (b"1", ["lock"], ["lock"])


DATA = {"source": "noise", "shape": [1, 8, 6], "counts": {}, "classes": []}


@pytest.fixture
def run(tmp_path):
    """A run with one finished stage."""
    opened = open_run(parse_config({"storage": str(tmp_path), "name": "run", "seed": 3}), ("json",))

    def work(fingerprint):
        opened.folder.write("data/x", b"1")
        return ["data/x"], DATA | {"made_by": fingerprint}

    opened.stage("data", {"a": 1}, work)
    return opened


def test_a_run_reads_each_manifest_once_and_anew_when_opened_anew(run):
    first = run.manifest("data")
    assert first.info["made_by"] == first.fingerprint
    assert (run.data, run.shape) == (first, (1, 8, 6))
    content = run.folder.read_json("data/manifest.json")
    run.folder.write_json("data/manifest.json", content | {"info": DATA | {"shape": [3, 4, 4]}})
    assert run.manifest("data") == first
    other = run.with_config(parse_config({"seed": 4}))
    assert (other.folder, other.plugins, other.config.seed) == (run.folder, run.plugins, 4)
    assert other.manifest("data") == first
    assert open_run(run.config).shape == (3, 4, 4)


def test_a_stage_that_has_not_finished_or_is_no_manifest_names_the_command(run):
    with pytest.raises(PipelineError, match=r"train/manifest\.json does not exist.* `python -m pipeline\.train`"):
        run.manifest("train")
    run.folder.write_json("train/manifest.json", {"stage": "train"})
    told = r"train/manifest\.json is damaged \(it lacks fing.*: run `python -m pipeline\.train --f"
    with pytest.raises(PipelineError, match=told):
        run.manifest("train")


def test_a_stage_works_again_when_its_inputs_or_its_outputs_are_not_what_they_were(run, capsys):
    worked = []

    def work(fingerprint):
        worked.append(fingerprint)
        run.folder.write("data/x", b"1")
        return ["data/x"], {}

    run.stage("data", {"a": 1}, work)
    assert worked == []
    run.stage("data", {"a": 2}, work)
    assert len(worked) == 1
    run.folder.write("data/x", b"longer")
    run.stage("data", {"a": 2}, work)
    run.folder.remove("data/x")
    run.stage("data", {"a": 2}, work)
    run.stage("data", {"a": 2}, work, force=True)
    assert len(worked) == 4
    assert len(set(worked)) == 1
    assert capsys.readouterr().out.count("data: up to date, ") == 1


def test_what_was_made_from_other_inputs_is_refused(run):
    def finish(stage, depends_on, content):
        run.folder.write(f"{stage}/x", content)
        return run.stage(stage, depends_on, lambda _: ([f"{stage}/x"], DATA if stage == "data" else {}))

    finish("train", {"data": run.data.digest}, b"model")
    finish("samples", {"train": run.manifest("train").digest}, b"images")
    assert run.made("samples").info["made_from"] == {"train": run.manifest("train").digest}
    finish("train", {"data": run.data.digest, "epochs": 2}, b"another")
    run.made("train")
    with pytest.raises(ConfigError, match=r"/samples was made from another train/ .*`python -m pipeline\.sample`"):
        run.made("samples")
    finish("data", {"a": 2}, b"other images")
    with pytest.raises(ConfigError, match=r"/train was made from another data/ .*`python -m pipeline\.train`, or by"):
        run.made("train")


def test_a_stage_is_told_what_its_outputs_are_or_reads_them(run, monkeypatch):
    folder, read = run.folder, []
    monkeypatch.setattr(Folder, "read", lambda self, name, old=Folder.read: (read.append(name), old(self, name))[1])

    def work(fingerprint):
        for name in ("data/told", "data/not/told"):
            folder.write(name, b"12")
        return [Output.of("data/told", b"12"), "data/not/told"], {}

    manifest = run.stage("data", {"a": 2}, work)
    assert read == ["data/not/told"]
    entry = {"bytes": 2, "sha256": sha256(b"12")}
    assert manifest.outputs == {"data/not/told": entry, "data/told": entry}


def test_whether_a_stage_is_current_is_one_listing(run, monkeypatch):
    def work(fingerprint):
        for number in range(50):
            run.folder.write(f"data/deep/{number}", b"1")
        return [f"data/deep/{number}" for number in range(50)], {}

    run.stage("data", {"a": 2}, work)
    asked = []

    def counted(method):
        old = getattr(LocalFileSystem, method)
        return lambda self, path, *args, **kwargs: (asked.append(method), old(self, path, *args, **kwargs))[1]

    with monkeypatch.context() as patch:
        for method in ("find", "exists", "size"):
            patch.setattr(LocalFileSystem, method, counted(method))
        run.stage("data", {"a": 2}, lambda _: pytest.fail("it was current"))
    assert asked == ["exists", "find"]  # of the manifest, of all outputs
    run.folder.remove("data/deep")
    assert run._current("data", run.manifest("data").fingerprint) is None


def test_a_run_goes_to_another_process_with_its_plugins_first(run, tmp_path):
    (tmp_path / "my_plugin.py").write_text(
        "from ldcvae.variants import NETWORKS, Network\nNETWORKS.register(Network('tiny', None, None))\n"
    )
    (tmp_path / "send.py").write_text(
        "import pickle, sys\n"
        "from pipeline.config.load import parse_config\n"
        "from pipeline.config.plugins import load_plugins\n"
        "from pipeline.store.run import open_run\n"
        "load_plugins(['my_plugin'])\n"
        f"config = parse_config({{'storage': {str(tmp_path)!r}, 'name': 'run', 'model': {{'network': 'tiny'}}}})\n"
        "sys.stdout.buffer.write(pickle.dumps(open_run(config, ('my_plugin',))))\n"
    )
    receive = (
        "import pickle, sys\n"
        "run = pickle.load(sys.stdin.buffer)\n"
        "print(run.config.model.network, run.plugins, run.folder.url, run.shape, run.has('train'))\n"
    )

    def python(*arguments, given=b""):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
        done = subprocess.run(
            [sys.executable, *arguments], input=given, env=environment, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    printed = python("-c", receive, given=python(str(tmp_path / "send.py"))).decode()
    assert printed.split("\n")[0] == f"tiny ('my_plugin',) {run.folder.url} (1, 8, 6) False"
