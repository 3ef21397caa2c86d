"""Object storage: the whole way on S3's protocol (moto's server on loopback), clear errors, no secrets anywhere."""

import io
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import boto3
import botocore.exceptions
import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from faulty_proxy import FAULTS, faulty_proxy
from processes import finish, here, run, start, wait_for
from s3_server import SECRET, environment, s3_server

from pipeline.config.errors import PipelineError
from pipeline.config.load import load_config, parse_config
from pipeline.remote.connect import connect
from pipeline.store.data import shards as dataset
from pipeline.store.data.stored import StoredSplit
from pipeline.store.folder import Folder
from pipeline.store.lease import held
from pipeline.store.manifest import Output
from pipeline.store.run import open_run

SEARCH = ["tune.num_samples=2", "tune.max_concurrent=1", "tune.num_images=200", "tune.draws=1", "tune.reports=2"]
OUTAGE = 60.0  # seconds
STORED = ["train.epochs=6", "train.checkpoint_epochs=1", "sampler.checkpoint_steps=10"]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A client of an S3 server with the bucket `runs`; the environment leads there, for child processes too."""
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("moto") / "log") as port:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in environment(port).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # one made under another environment would be used again
        client = boto3.client("s3")
        client.create_bucket(Bucket="runs")
        client.create_bucket(Bucket="bad")
        yield client
    s3fs.S3FileSystem.clear_instance_cache()


def tiny(storage):
    """The run that `processes.run` makes."""
    return open_run(parse_config({"storage": str(storage), "name": "tiny"}))


def objects(s3, prefix=""):
    """Key -> content of everything in the bucket."""
    return {key: s3.get_object(Bucket="runs", Key=key)["Body"].read() for key in keys(s3, "runs", prefix)}


def keys(s3, bucket, prefix=""):
    """Names of everything in a bucket."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def test_write_read_list_remove(s3):
    folder = Folder("s3://runs/files")
    folder.write("deep/x.bin", b"\0\xff")
    folder.write_json("deep/y.json", {"a": 1})
    assert objects(s3, "files/")["files/deep/x.bin"] == b"\0\xff"
    assert folder.read_json("deep/y.json") == {"a": 1}
    assert folder.files("deep/*") == ["deep/x.bin", "deep/y.json"]
    assert {name: info["size"] for name, info in folder.below("deep").items()} == {"deep/x.bin": 2, "deep/y.json": 13}
    with folder.local_copy() as path:
        assert (path / "deep" / "x.bin").read_bytes() == b"\0\xff"
    folder.remove("deep")
    folder.remove("deep")
    assert not folder.exists("deep")
    assert objects(s3, "files/") == {}
    with pytest.raises(PipelineError, match=r"s3://runs/files/deep/x\.bin does not exist"):
        folder.read("deep/x.bin")


def test_of_two_that_create_a_file_one_succeeds(s3):
    folder = Folder("s3://runs/created")
    assert folder.create("lock", b"1")
    assert not folder.create("lock", b"2")
    assert folder.read("lock") == b"1"
    with held(folder, "train"):
        with pytest.raises(PipelineError, match="is in use"), held(folder, "report"):
            pass
        assert folder.exists("lock.json")
    assert folder.files("*") == ["lock"]


def test_what_another_process_writes_and_removes_is_seen(s3):
    folder = Folder("s3://runs/shared")
    folder.write("a", b"1")
    assert folder.files("*") == ["a"]
    s3.put_object(Bucket="runs", Key="shared/b", Body=b"22")
    assert folder.exists("b")
    assert folder.below()["b"]["size"] == 2
    assert folder.files("*") == ["a", "b"]
    s3.delete_object(Bucket="runs", Key="shared/a")
    assert not folder.exists("a")
    assert folder.files("*") == ["b"]


def test_a_row_group_is_read_without_the_rest_of_its_shard(s3, monkeypatch):
    monkeypatch.setattr(dataset, "GROUP_BYTES", 100 * 3 * 32 * 32)
    opened = open_run(parse_config({"storage": "s3://runs/streams"}))
    images = np.random.default_rng(0).integers(0, 256, (1000, 3, 32, 32), dtype=np.uint8)

    def work(_):
        info = {"shape": [3, 32, 32], "counts": {"train": 1000}, "classes": []}
        return dataset.write_split(opened.folder, "train", images, None, 1000), info

    opened.stage("data", {}, work)
    stored = StoredSplit(opened, "train")
    fetched = []
    fetch = s3fs.S3File._fetch_range

    def counted(file, start, end):
        fetched.append(end - start)
        return fetch(file, start, end)

    monkeypatch.setattr(s3fs.S3File, "_fetch_range", counted)
    for number in (7, 2):
        assert (stored.read(stored.groups[number])[0] == images[100 * number : 100 * (number + 1)]).all()
    assert sum(fetched) < 2.5 * dataset.GROUP_BYTES
    requests = len(fetched)
    stored.read(stored.groups[5])
    assert len(fetched) - requests == 1  # the footer is known by now
    opened.folder.remove("data/train-00000.parquet")
    with pytest.raises(PipelineError, match=r"s3://runs/streams/.*/data/train-00000\.parquet does not exist"):
        stored.read(stored.groups[5])


def test_whether_a_stage_is_current_is_a_request_or_two_however_many_outputs(s3, monkeypatch):
    opened = open_run(parse_config({"storage": "s3://runs/current"}))
    names = [f"data/{number}" for number in range(20)]

    def work(_):
        for name in names:
            opened.folder.write(name, b"1")
        return [Output.of(name, b"1") for name in names], {}

    opened.stage("data", {}, work)
    requests, call = [], s3fs.S3FileSystem._call_s3

    async def counted(filesystem, method, *args, **kwargs):
        requests.append(method)
        return await call(filesystem, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    opened.stage("data", {}, lambda _: pytest.fail("it was current"))
    assert len(requests) <= 2
    s3.put_object(Bucket="runs", Key=f"current/{opened.config.name}/data/7", Body=b"longer")  # another process
    assert opened._current("data", opened.manifest("data").fingerprint) is None


CALLS = {
    "read": lambda folder: folder.read("x"),
    "write": lambda folder: folder.write("x", b""),
    "look for": lambda folder: folder.exists("x"),
    "list": lambda folder: folder.files("*"),
    "remove": lambda folder: folder.remove("x"),
}


@pytest.mark.parametrize("action", CALLS)
def test_missing_credentials_are_one_clear_error(s3, action, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PipelineError, match=rf"cannot {action} s3://runs/a.*: Unable to locate credentials"):
        CALLS[action](Folder("s3://runs/a"))
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("action", CALLS)
def test_an_unreachable_endpoint_is_one_clear_error(s3, action, monkeypatch):
    def unreachable(*args, **kwargs):
        raise botocore.exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:9")

    for method in ("cat_file", "pipe_file", "exists", "glob", "rm"):
        monkeypatch.setattr(s3fs.S3FileSystem, method, unreachable)
    with pytest.raises(PipelineError, match=rf"cannot {action} s3://runs/a.*: Could not connect to the endpoint"):
        CALLS[action](Folder("s3://runs/a"))


def test_a_missing_bucket_is_one_line_and_status_1(s3):
    out, err = run("prepare", "s3://nobucket", expect=1)
    assert err.count("\n") == 1
    assert err.startswith("error: cannot create s3://nobucket/tiny/lock.json: ")
    assert SECRET not in out + err


@pytest.mark.slow
def test_every_stage_on_s3_with_two_workers_and_again_nothing(s3, monkeypatch, capfd):
    logs = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: it holds Ray's sockets
    monkeypatch.setenv("RAY_TMPDIR", str(logs))
    overrides = [
        "train.num_workers=2", "train.memory_mb=0", "data.images_per_shard=300", "sampler.particles=128"
    ]  # fmt: skip
    try:
        with connect(load_config(None, ["ray.num_cpus=2"])):
            out, err = here("run", "s3://runs/all", *overrides)
            assert "1,294 images stream from storage, 5 row groups" in out
            for stage in ("data", "train", "samples", "evaluation", "report"):
                assert f"{stage}: done" in out
            found = objects(s3, "all/tiny/")
            finished = tiny("s3://runs/all")
            for stage in ("data", "train", "samples", "evaluation", "report"):
                for name, entry in finished.manifest(stage).outputs.items():
                    assert len(found[f"all/tiny/{name}"]) == entry["bytes"]
            epochs = [json.loads(line) for line in found["all/tiny/train/metrics.jsonl"].splitlines()]
            assert [line["epoch"] for line in epochs if line["phase"] == "autoencoder"] == [1, 2, 3, 4, 5, 6]
            kept = {key.split("/")[4] for key in found if key.endswith("/state.json")}
            assert kept == {"sampler_00000040", "sampler_00000060"}  # train.keep_checkpoints is 2
            assert len(pq.read_table(io.BytesIO(found["all/tiny/samples/images-00000.parquet"]))) == 50

            again, again_err = here("run", "s3://runs/all", *overrides)
            assert again.count("up to date") == 5
            assert "done" not in again
            assert objects(s3, "all/tiny/") == found

            tune, tune_err = here("tune", "s3://runs/all", *overrides, "train.num_workers=1", *SEARCH)
            assert "tune: 2/2 trials" in tune
            found = objects(s3, "all/tiny/")
            assert len(pq.read_table(io.BytesIO(found["all/tiny/tune/trials.parquet"]))) == 2
            assert b"tiny-best" in found["all/tiny/tune/best.yaml"]
            assert not any("tune/checkpoints/" in key for key in found)

        assert SECRET not in "".join([out, err, again, again_err, tune, tune_err, *capfd.readouterr()])
        assert [key for key, content in found.items() if SECRET.encode() in content] == []
        written = [path for path in logs.rglob("*") if path.is_file() and not path.is_symlink()]
        assert any(path.suffix == ".log" for path in written)
        assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    finally:
        shutil.rmtree(logs, ignore_errors=True)


@pytest.mark.drill
def test_bad_storage_delays_a_run_and_changes_nothing(s3, monkeypatch, tmp_path):
    here("prepare", tmp_path, *STORED)
    for stage in ("train", "sample"):
        run(stage, tmp_path, *STORED)
    s3fs.S3FileSystem.clear_instance_cache()
    server = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with faulty_proxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        run("prepare", "s3://bad", *STORED)
        training = start("train", "s3://bad", *STORED)
        wait_for(lambda: any("state.json" in key for key in keys(s3, "bad", "tiny/train/")), "checkpoint")
        proxy.down.set()
        time.sleep(OUTAGE)
        proxy.down.clear()
        finish(training)
        run("sample", "s3://bad", *STORED)
        for _ in range(100):  # until every fault has been met
            if set(proxy.met) >= set(FAULTS):
                break
            Folder("s3://bad/tiny").read("model/config.json")
        assert set(proxy.met) >= set(FAULTS)
        alone, through = tiny(tmp_path), tiny("s3://bad")
        for stage in ("data", "train", "samples"):
            ours, theirs = (opened.manifest(stage).outputs for opened in (through, alone))
            assert set(ours) == set(theirs)
            same = [name for name in ours if name.endswith((".safetensors", ".parquet", "config.json", "grid.png"))]
            assert same
            assert {name: ours[name]["sha256"] for name in same} == {name: theirs[name]["sha256"] for name in same}
    s3fs.S3FileSystem.clear_instance_cache()
