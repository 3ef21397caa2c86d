"""Configuration: all mistakes at once with dotted names, safe YAML, and a round trip."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import Config, describe_keys, dump_yaml, load_config

ROOT = Path(__file__).parents[2]


def mistakes(*overrides):
    with pytest.raises(ConfigError) as error:
        load_config(overrides=overrides)
    return str(error.value).split("\n  ")


def test_defaults_are_the_digits():
    config = load_config()
    assert config == Config()
    assert (config.name, config.data.source, config.storage) == ("digits", "digits", "runs")


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train:\n  epochs: 5\n  batch_size: 32\n")
    config = load_config(path, ["train.epochs=7", "sampler.bandwidths=[0.1,1]", "data.path=null"])
    assert (config.train.epochs, config.train.batch_size) == (7, 32)
    assert config.sampler.bandwidths == [0.1, 1.0]
    assert config.data.path is None


def test_all_mistakes_in_one_message():
    head, *rest = mistakes("train.epochs=-1", "sampler.particle=9", "data.source=foo", "data.image_size=2", "zzz=1")
    assert head == "5 mistakes in the configuration:"
    assert len(rest) == 5
    text = "\n".join(rest)
    assert "train.epochs: Input should be greater than or equal to 1, got -1" in text
    assert "sampler.particle: unknown key; did you mean sampler.particles?" in text
    assert "data.source: Input should be 'digits', 'torchvision', 'idx', 'folder' or 'parquet', got 'foo'" in text
    assert "data.image_size: Input should be greater than or equal to 4, got 2" in text
    assert "zzz: unknown key" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=3", "epochs: unknown key; did you mean train.epochs?"),
        ("tain.epochs=3", "tain: unknown key; did you mean train?"),
        ("train.epochs=many", "train.epochs: Input should be a valid integer"),
        ("train.learning_rate=.nan", "train.learning_rate: "),
        ("train.bf16=perhaps", "train.bf16: Input should be a valid boolean"),
        ("data.source=folder", "data.path is missing: source 'folder' needs data.path"),
        ("data.source=torchvision", "data.name is missing"),
        ("data.validation_fraction=0", "data.validation_fraction: Input should be greater than 0, got 0"),
        ("name=../evil", "name: must be a plain folder name"),
        ("name=a/b", "name: must be a plain folder name"),
        ("seed=-1", "seed: Input should be greater than or equal to 0, got -1"),
        ("train=3", "train: "),
    ],
)
def test_a_mistake_names_its_key(override, message):
    head, first, *_ = mistakes(override)
    assert head == "1 mistake in the configuration:"
    assert first.startswith(message)


@pytest.mark.parametrize("override", ["epochs", "=3", ""])
def test_malformed_overrides(override):
    with pytest.raises(ConfigError, match="key=value"):
        load_config(overrides=[override])


@pytest.mark.parametrize(
    "text",
    [
        "train: !!python/object/apply:os.system ['touch pwned']",
        "!!python/object/new:os.system ['touch pwned']",
        "train: !!python/name:os.system",
    ],
)
def test_unsafe_yaml_is_refused_and_not_executed(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError):
        load_config(overrides=[f"name={text.removeprefix('train: ')}"])
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just words", "a: 1\na: 2\n", "\x00"])
def test_a_file_that_is_no_config(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read(tmp_path, kind):
    path = tmp_path / "c.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(path)


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("")
    assert load_config(tmp_path / "c.yaml") == Config()


def test_yaml_round_trip(tmp_path):
    overrides = [
        "name=yes-no_ü",
        "seed=7",
        "storage=s3://bucket/runs",
        "train.bf16=false",
        "train.learning_rate=1e-5",
        "sampler.bandwidths=[0.001,2]",
        "data.source=folder",
        "data.path='a: b # c'",
        "data.channels=3",
        "report.title='null'",
    ]
    config = load_config(overrides=overrides)
    (tmp_path / "c.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "c.yaml") == config
    assert config.data.path == "a: b # c"
    assert config.report.title == "null"
    assert config.train.learning_rate == 1e-5


def test_help_lists_every_key_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as status:
        main("prepare", ["--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    for name, kind, default, description in describe_keys():
        assert f"  {name}={default}  [{kind}]" in text
        assert description
        assert " ".join(description.split()) in words


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (None, None, ""),
        (PipelineError("file x"), 1, "error: file x\n"),
        (ConfigError("key y"), 2, "error: key y\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted"),
    ],
)
def test_exit_status(error, status, printed, capsys, monkeypatch):
    seen = []

    def run(config, force):
        seen.append((config.train.epochs, force))
        if error is not None:
            raise error

    monkeypatch.setattr("pipeline.prepare.run", run)
    arguments = ["--force", "train.epochs=3"]
    if status is None:
        main("prepare", arguments)
    else:
        with pytest.raises(SystemExit) as stop:
            main("prepare", arguments)
        assert stop.value.code == status
    assert seen == [(3, True)]
    assert capsys.readouterr().err.startswith(printed)


def test_unknown_option_is_bad_usage(capsys):
    with pytest.raises(SystemExit) as status:
        main("prepare", ["--nonsense"])
    assert status.value.code == 2


def test_mistakes_end_the_command_before_ray_starts(tmp_path):
    script = (
        "import ray, runpy, sys\n"
        "ray.init = lambda *a, **k: sys.exit('Ray was started')\n"
        "sys.argv = ['prepare', 'train.epochs=-1', 'foo=1']\n"
        "runpy.run_module('pipeline.prepare', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 2 mistakes in the configuration:")
    assert "train.epochs: " in done.stderr
    assert "foo: unknown key" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("override", ["storage=${oc.env:HOME}", "data.path=s3://${bucket}/x", "name=${seed}"])
def test_interpolation_is_refused_with_every_other_mistake(override, monkeypatch):
    monkeypatch.setenv("HOME", "/planted")
    with pytest.raises(ConfigError) as error:
        load_config(overrides=[override, "train.epochs=0"])
    assert f"{override.partition('=')[0]}: ${{…}} is not resolved here" in str(error.value)
    assert "train.epochs" in str(error.value)
    assert "/planted" not in str(error.value)


def test_an_unknown_top_level_key_lists_the_sections():
    with pytest.raises(ConfigError, match=r"zzz: unknown key; known here: .*data.*name.*sampler.*train"):
        load_config(overrides=["zzz=1"])


def test_the_shipped_digits_file_is_the_defaults():
    assert load_config(ROOT / "configs" / "digits.yaml") == Config()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    assert load_config(path).name
