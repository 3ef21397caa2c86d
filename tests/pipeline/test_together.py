"""What does not fit together in a configuration is told in one message, before any stage works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_config import STAGES, heavy, mistakes

from pipeline.config.errors import ConfigError
from pipeline.config.load import load_config, parse_config
from pipeline.remote.hardware import hardware_checks
from pipeline.store.folder import Folder

ROOT = Path(__file__).parents[2]
THREE = ["storage=s3:/bucket", "train.batch_size=64", "train.num_workers=3", "sampler.particles=96"]
THREE += ["data.validation_fraction=0.5", "data.test_fraction=0.5"]


def command(stage, *arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"pipeline.{stage}", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def said(done):
    return [line for line in done.stderr.splitlines() if not line.startswith("import time:")]


@pytest.mark.parametrize("stage", ["run", "tune"])
def test_a_stage_names_all_of_them_at_once_and_waits_for_no_library(stage, tmp_path):
    done = command(stage, *THREE, "ray.num_cpus=8", cwd=tmp_path)
    assert done.returncode == 2
    assert said(done) == [
        "error: 3 mistakes in the configuration:",
        "  storage: 's3:/bucket' would be a local folder; did you mean s3://bucket?",
        "  data.validation_fraction: 0.5 and data.test_fraction 0.5 add up to 1; must be below 1 together",
        "  train.batch_size: 64 does not divide over train.num_workers=3",
    ]
    assert heavy(done.stderr) == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host/db",
        "postgresql://me:pa/ss@host/db",
        "postgresql://me:pa$w@host/db",
        "mysql://host/db?user=me&password=secret",
    ],
)
def test_a_databases_password_is_refused_and_not_repeated(url):
    _, line = mistakes(f"tune.study_url={url}")
    assert "tune.study_url: a password in the configuration ends up in the run's files; write $NAME" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://$PGUSER:$PGPASSWORD@host/db",
        "postgresql://me:$PGPASSWORD@host/db?sslmode=require",
        "postgresql://me@host:5432/db",
        "sqlite:////data/a:b@c/study.db",
        "mysql://host/db?password=$MYSQL_PASSWORD",
    ],
)
def test_a_database_without_a_password_is_fine(url):
    assert load_config(None, [f"tune.study_url={url}"]).tune.study_url == url


@pytest.mark.parametrize(
    "keys",
    [
        ["evaluate.extractor=file", "evaluate.extractor_file=https://host/a.pt?sig=secret"],
        ["evaluate.extractor=inception", "evaluate.inception_weights=https://host/a.pt?token=secret"],
        ["decoder.epochs=1", "decoder.perceptual=1", "decoder.perceptual_weights=https://me:secret@host/a.pt"],
    ],
)
def test_signed_urls_of_weights_are_refused_and_not_repeated(keys):
    _, line = mistakes(*keys)
    assert f"{keys[-1].partition('=')[0]}: https://…: credentials in a URL end up in logs" in line
    assert "secret" not in line


def test_a_mistake_in_one_section_hides_none_between_others():
    head, *rest = mistakes("storage=gs:/bucket", "data.test_fraction=2", "train.num_workers=5", "epochs=3")
    assert head == "5 mistakes in the configuration:"
    assert [line.partition(":")[0] for line in rest] == [
        "data.test_fraction", "epochs", "storage", "train.batch_size", "sampler.particles",
    ]  # fmt: skip
    # With a wrong section nothing is said of what stands in its place.
    _, *rest = mistakes("train.num_workers=three", "sampler.particles=7")
    assert [line.partition(":")[0] for line in rest] == ["train.num_workers"]


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("s3:/bucket", "s3://bucket"),
        ("S3:/bucket/a", "s3://bucket/a"),
        ("gs:/bucket", "gs://bucket"),
        ("az:/container/runs", "az://container/runs"),
        ("abfs:/container", "abfs://container"),
        ("file:/data/runs", "file:///data/runs"),
        ("simplecache::s3:/bucket", "simplecache::s3://bucket"),
    ],
)
def test_a_url_with_one_slash_is_no_local_folder(tmp_path, monkeypatch, url, meant):
    monkeypatch.chdir(tmp_path)
    for key in ("storage", "data.path"):
        head, line = mistakes(f"{key}={url}", "data.source=folder", *(["data.path=x"] if key == "storage" else []))
        assert head == "1 mistake in the configuration:"
        assert line == f"{key}: {url!r} would be a local folder; did you mean {meant}?"
    with pytest.raises(ConfigError, match="did you mean"):
        Folder(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path", ["C:/runs", "C:\\runs", "runs/s3:/bucket", "./s3:/bucket", "my:/runs", "s3:runs", "a:b"]
)
def test_a_local_name_with_a_colon_is_one(path):
    assert load_config(None, [f"storage={path}"]).storage == path
    assert Folder(path).is_local


@pytest.mark.parametrize("url", ["memory://runs", "s3://key:secret@bucket"])
def test_a_storage_that_cannot_be_is_told_with_the_rest(url):
    head, storage, epochs = mistakes(f"storage={url}", "train.num_workers=3", "sampler.particles=96")
    assert head == "2 mistakes in the configuration:"
    assert storage.startswith("storage: ")
    assert "secret@" not in storage
    assert epochs.startswith("train.batch_size: ")


@pytest.mark.parametrize(
    ("storage", "fits"),
    [("runs", False), ("./runs", False), ("/mnt/runs", True), ("~/runs", True), ("s3://bucket/runs", True)],
)
def test_a_job_needs_a_storage_that_outlives_its_temporary_folder(monkeypatch, storage, fits):
    assert load_config(None, [f"storage={storage}"]).storage == storage  # without a job all of them do
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    if fits:
        assert load_config(None, [f"storage={storage}"]).storage == storage
    else:
        _, line = mistakes(f"storage={storage}")
        assert line.startswith(f"storage: {storage!r} is relative, and a Ray job runs in a temporary copy")
        assert "must be an absolute path or a URL" in line


@pytest.mark.parametrize("stage", ["run", "train", "tune", "compare"])
def test_cuda_without_a_gpu_is_refused_before_the_first_stage_with_the_rest(stage, tmp_path):
    overrides = [
        "train.device=cuda",
        f"storage={tmp_path}",
        "train.num_workers=3",
        "sampler.particles=96",
        "ray.num_cpus=8",
    ]
    done = command(stage, *overrides, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    head, batch, device = said(done)
    assert head == "error: 2 mistakes in the configuration:"
    assert batch.startswith("  train.batch_size: ")
    assert device.startswith("  train.device: cuda, but torch finds no usable GPU on this machine; use auto or cpu")
    assert "ray" not in heavy(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_only_stages_that_train_look_at_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    wrong = ["train.device=cuda", "train.num_workers=2", "ray.num_cpus=1"]
    keys = {}
    for stage in STAGES:
        try:
            load_config(None, wrong, hardware_checks(stage))
        except ConfigError as error:
            keys[stage] = [line.partition(":")[0].strip() for line in str(error).splitlines()[1:]]
    both = ["train.device", "train.num_workers"]
    assert keys == {"run": both, "train": both, "tune": both, "compare": ["train.device"]}
    # A cluster's hardware is not this machine's.
    assert load_config(None, [*wrong, "ray.address=10.0.0.9:6379"], hardware_checks("run"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_config(None, wrong[:1], hardware_checks("run"))
    with pytest.raises(ConfigError, match=r"train\.device: cuda does not go together with ray\.num_gpus=0"):
        load_config(None, [*wrong[:1], "ray.num_gpus=0"], hardware_checks("run"))


def test_another_process_takes_a_configuration_as_it_was_checked():
    assert parse_config({"train": {"num_workers": 3}}).train.num_workers == 3
