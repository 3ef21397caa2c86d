"""Configuration: all mistakes at once with dotted names, safe YAML, a round trip; the command line around it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ldcvae import __version__
from pipeline.__main__ import SECTIONS, main
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import Config, describe_keys, dump_yaml, load_config
from pipeline.remote.hardware import hardware_checks

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "configs/images.yaml"  # which waits for the folder
STAGES = ("run", "prepare", "train", "sample", "evaluate", "report", "tune", "compare", "verify")


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
    assert config.sampler.bandwidths == (0.1, 1.0)
    assert config.data.path is None


def test_all_mistakes_in_one_message():
    head, *rest = mistakes("train.epochs=-1", "sampler.particle=9", "data.source=foo", "data.image_size=2", "zzz=1")
    assert head == "5 mistakes in the configuration:"
    assert len(rest) == 5
    text = "\n".join(rest)
    assert "train.epochs: Input should be greater than or equal to 1, got -1" in text
    assert "sampler.particle: unknown key; did you mean sampler.particles?" in text
    assert "data.source: must be one of digits, torchvision, idx, folder, parquet, got 'foo'" in text
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("2e+2", 200.0),
        ("+.5", 0.5),
        ("5.", 5.0),
        ("1_000.5", 1000.5),
        ("3", 3.0),
    ],
)
def test_numbers_are_those_of_yaml_1_2(tmp_path, text, value):
    (tmp_path / "c.yaml").write_text(f"train:\n  learning_rate: {text}\nreport:\n  title: '{text}'\n")
    for config in (load_config(tmp_path / "c.yaml"), load_config(None, [f"train.learning_rate={text}"])):
        assert config.train.learning_rate == value
    assert load_config(tmp_path / "c.yaml").report.title == text  # in quotes a text
    assert "report.title" in mistakes(f"report.title={text}")[1]  # a number where a text is wanted: no guess


@pytest.mark.parametrize(
    "text", ["2024-01-31", "2024-01-31T10:00:00Z", "2024-01-31 10:00:00", "08", "1e", "1:30.5", "."]
)
def test_dates_and_what_only_looks_like_a_number_are_texts(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"report:\n  title: {text}\n")
    assert load_config(tmp_path / "c.yaml").report.title == text
    assert load_config(None, [f"report.title={text}"]).report.title == text


def test_a_key_that_stands_twice_is_refused_by_name(tmp_path):
    (tmp_path / "c.yaml").write_text("train:\n  epochs: 1\n  ema: 0.5\n  epochs: 2\n")
    with pytest.raises(ConfigError, match=r"c\.yaml is not readable YAML: epochs stands twice\n.* line 2"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"override 'train=\{ema: 0, ema: 0\}': the value is not YAML: ema stands"):
        load_config(None, ["train={ema: 0, ema: 0}"])


def test_merge_keys_of_yaml_are_no_duplicates(tmp_path):
    (tmp_path / "c.yaml").write_text("model: &small {width: 16, depth: 1}\nsampler:\n  <<: *small\n  depth: 2\n")
    config = load_config(tmp_path / "c.yaml")
    assert (config.model.width, config.model.depth) == (16, 1)
    assert (config.sampler.width, config.sampler.depth) == (16, 2)


def test_a_mapping_is_merged_into_what_is_there(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "train: {epochs: 5, ema: 0.5}\ncompare:\n  seeds: 2\n  only: {vae: [prior]}\nmodel:\n"
    )
    overrides = ["train={ema: 0.25, batch_size: 8}", "train.batch_size=4", "compare={only: {rae_l2: [gmm]}}"]
    config = load_config(tmp_path / "c.yaml", [*overrides, "model.width=16", "sampler.bandwidths=[1]"])
    assert (config.train.epochs, config.train.ema, config.train.batch_size) == (5, 0.25, 4)
    assert config.compare.seeds == 2
    assert config.compare.only == {"vae": ["prior"], "rae_l2": ["gmm"]}
    assert config.model.width == 16  # below a heading without keys
    assert config.sampler.bandwidths == (1.0,)  # a list takes the place of a list


def test_an_override_below_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"override seed\.x: seed holds 3, which has no keys"):
        load_config(None, ["seed=3", "seed.x=4"])


@pytest.mark.parametrize("override", ["train=[1", "train={a: 1", "name='x", "name=!!int x", "seed=0x_", "name=*a"])
def test_an_override_that_is_no_yaml_is_named(override):
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert str(error.value).startswith(f"override {override!r}: the value is not YAML: ")


def test_a_file_is_utf_8_wherever_it_is_read(tmp_path):
    (tmp_path / "c.yaml").write_bytes("name: größe\n".encode())
    script = (
        f"from pipeline.config.load import load_config; print(ascii(load_config({str(tmp_path / 'c.yaml')!r}).name))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == ascii("größe"), done.stderr


@pytest.mark.parametrize("override", ["name={a: b}", "train.num_workers={a: b}"])
def test_a_mapping_in_place_of_a_value_is_named_like_any_mistake(override):
    key = override.partition("=")[0]
    head, first = mistakes(override)
    assert head == "1 mistake in the configuration:"
    assert first.startswith(f"{key}: must be ")
    assert first.endswith(", got {'a': 'b'}")


def output(capsys, stage, *arguments, status=0):
    """What the command line prints on stdout before it ends."""
    with pytest.raises(SystemExit) as stop:
        main(stage, arguments)
    assert stop.value.code == status
    return capsys.readouterr().out


@pytest.mark.parametrize("stage", ["prepare", "run"])
def test_help_lists_every_key_with_its_meaning(capsys, stage):
    text = output(capsys, stage, "--help-all")
    words = " ".join(text.split())
    for name, kind, default, description in describe_keys():
        assert f"  {name}={default}  [{kind}]" in text
        assert description
        assert " ".join(description.split()) in words


@pytest.mark.parametrize(
    ("stage", "sections"),
    [
        ("prepare", {"data", "ray"}),
        ("train", {"model", "train", "decoder", "sampler", "ray"}),
        ("report", {"report"}),
    ],
)
def test_help_lists_only_what_the_stage_reads(capsys, stage, sections):
    text = output(capsys, stage, "--help")
    shown = set(re.findall(r"^  ([\w.]+)=.*  \[", text, re.M))
    every = [name for name, *_ in describe_keys()]
    assert shown == {"name", "storage", "seed"} | {name for name in every if name.partition(".")[0] in sections}
    assert len(shown) < 0.6 * len(every)
    assert "--help-all lists the keys of the other stages too." in text


def test_help_lists_single_keys_of_other_sections(capsys):
    text = output(capsys, "evaluate", "--help")
    assert "  train.device=auto  [" in text
    assert "  train.epochs=" not in text


def test_help_names_the_variants_and_writes_lists_as_yaml(capsys):
    text = output(capsys, "run", "--help")
    assert "  data.source=digits  [digits|torchvision|idx|folder|parquet]\n" in text
    assert "  model.network=auto  [auto|mlp|conv|resnet|spatial]\n" in text
    assert "  sampler.direction=auto  [auto|stein|score_difference|drift]\n" in text
    assert "  sampler.bandwidths=[0.13, 0.23, 0.42]  [[float, ...]]\n" in text


def test_every_stage_prints_its_help_and_version(capsys):
    assert tuple(SECTIONS) == STAGES
    for stage in STAGES:
        assert output(capsys, stage, "-h").startswith(f"usage: python -m pipeline.{stage} ")
        assert output(capsys, stage, "--version") == f"ldcvae {__version__}\n"


def command(module, *arguments, cwd=None, options=()):
    return subprocess.run(
        [sys.executable, *options, "-m", module, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_the_overview_lists_all_stages(arguments):
    done = command("pipeline", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    listed = re.findall(r"^  (\w+) +(\S.*)$", done.stdout.partition("\nstages:\n")[2], re.M)
    assert tuple(name for name, _ in listed) == STAGES
    assert all(about.endswith(".") for _, about in listed)


def test_the_overview_runs_a_stage_with_its_arguments(tmp_path):
    assert command("pipeline", "--version").stdout == f"ldcvae {__version__}\n"
    done = command("pipeline", "train", "train.epochs=-1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 1 mistake in the configuration:\n  train.epochs: ")
    assert command("pipeline", "prepare", "--help", cwd=tmp_path).stdout == command("pipeline.prepare", "-h").stdout
    unknown = command("pipeline", "trian")
    assert unknown.returncode == 2
    assert "invalid choice: 'trian'" in unknown.stderr


@pytest.mark.parametrize("stage", [f"pipeline.{stage}" for stage in STAGES] + ["pipeline"])
def test_help_waits_for_no_library(stage, tmp_path):
    done = command(stage, "--help", cwd=tmp_path, options=["-X", "importtime"])
    assert done.returncode == 0
    assert heavy(done.stderr) == set()


@pytest.mark.parametrize("arguments", [["train.epochs=-1"], ["data.source=foo"], ["--plugin=no_such_module"]])
def test_a_mistake_waits_for_no_library(arguments, tmp_path):
    done = command("pipeline.run", *arguments, cwd=tmp_path, options=["-X", "importtime"])
    assert done.returncode == 2
    assert heavy(done.stderr) == set()
    assert list(tmp_path.iterdir()) == []


def heavy(import_times):
    """Which of the large libraries were imported, by what `-X importtime` prints."""
    imported = {
        line.rpartition("|")[2].strip() for line in import_times.splitlines() if line.startswith("import time:")
    }
    assert "pipeline.config.load" in imported
    return imported & {"torch", "ray", "pyarrow", "numpy", "torchvision", "sklearn", "matplotlib", "optuna", "PIL"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "ModuleNotFoundError: No module named 'my_plugin'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_clear_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "my_plugin.py").write_text(content)
    for arguments in (["train.epochs=3"], ["--help"]):
        done = command("pipeline.train", "--plugin", "my_plugin", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"error: --plugin my_plugin: {message}; ")
        assert "on every machine of a cluster" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_plugins_variant_is_shown_and_accepted(tmp_path):
    (tmp_path / "my_plugin.py").write_text(
        "from ldcvae.variants import NETWORKS, Network\n"
        "NETWORKS.register(Network('tiny', lambda *_: None, lambda *_: None))\n"
    )
    plugin = ["--plugin", "my_plugin"]
    # -P: without the folder of the command among the places of modules, as for an installed command.
    for options in ([], ["-P"]):
        text = command("pipeline.train", *plugin, "--help", cwd=tmp_path, options=options).stdout
        assert "[auto|mlp|conv|resnet|spatial|tiny]" in text
    assert "[auto|mlp|conv|resnet|spatial]" in command("pipeline.train", "--help", cwd=tmp_path).stdout
    wrong = ["model.network=tiny", "train.epochs=-1"]
    assert command("pipeline.train", *plugin, *wrong, cwd=tmp_path).stderr.startswith("error: 1 mistake ")
    assert "model.network: must be one of" in command("pipeline.train", *wrong, cwd=tmp_path).stderr


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

    def run(run, force):
        seen.append((run.config.train.epochs, force))
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
    told = capsys.readouterr().err
    assert told.startswith(printed)
    assert ("--force begins anew each time" in told) == (status in (1, 130))


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


SHIPPED = sorted(set((ROOT / "configs").glob("*.yaml")) - {IMAGES})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    assert load_config(path).name


def test_the_config_for_own_images_asks_for_their_folder():
    with pytest.raises(ConfigError, match=r"data\.path is missing: source 'folder' needs data\.path=FOLDER_OR_URL"):
        load_config(IMAGES)
    assert load_config(IMAGES, ["data.path=/data/cats"]).data.image_size == 64


def test_a_file_at_a_url(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {latent_dim: 5}")
    assert load_config(f"file://{tmp_path}/c.yaml", ["seed=3"]).model.latent_dim == 5
    with pytest.raises(ConfigError, match=r"config file file://.*/no\.yaml does not exist"):
        load_config(f"file://{tmp_path}/no.yaml")
    with pytest.raises(ConfigError, match=r"config file nosuch://a is not readable YAML: .*nosuch"):
        load_config("nosuch://a")
    with pytest.raises(ConfigError, match=r"--config: https://…: credentials in a URL") as error:
        load_config("https://host/c.yaml?X-Amz-Signature=hunter2")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.bandwidths=0.2", r"sampler\.bandwidths: must be a list, e\.g\. \[0\.2\], got 0\.2"),
        ("evaluate.generators=prior", r"evaluate\.generators: must be a list, e\.g\. \[prior\]"),
        ("train=5", r"train: is a section, whose keys are given one by one, e\.g\. train\.objective, got 5"),
        ("name=2024", r"name: must be text, and YAML reads this as something else; quote it twice"),
        ("name=no", r"name: must be text.*got False"),
        ("train.lamda=1", r"train\.lamda: unknown key; did you mean train\.\w+\?"),
        ("configs/mnist.yaml", r"did you mean --config configs/mnist\.yaml\?"),
        ("compare.only={vae:", "quote the whole argument"),
        ("data.path=/data/cats", r"data\.path: source 'digits' reads none, got '/data/cats'; data\.source=.*folder"),
        ("data.name=MNIST", r"data\.name: source 'digits' reads none, got 'MNIST'; data\.source=torchvision does"),
    ],
)
def test_a_mistake_says_what_was_meant(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("on: push\n", "a key must be text, and YAML reads this one as True: put it in quotes"),
        ("train: {1: x}\n", "YAML reads this one as 1"),
        ("a: &a [*a]\n", "holds itself"),
    ],
)
def test_files_of_other_programs_are_one_clear_line(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml")


def test_a_file_that_is_not_there_names_the_nearest(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("configs/digit.yaml", "digits"):
        with pytest.raises(ConfigError, match=r"does not exist; did you mean configs/digits\.yaml\?"):
            load_config(name)


def test_an_option_that_is_a_key_says_how_keys_are_given(capsys):
    with pytest.raises(SystemExit) as stopped:
        main("run", ["--learning-rate", "0.1"])
    assert stopped.value.code == 2
    assert "given as key=value, e.g. train.learning_rate=…" in capsys.readouterr().err


def test_what_judging_needs_is_asked_for_before_anything_works(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.remote.hardware.find_spec", lambda name: None)
    mistakes = ["evaluate.extractor=inception", f"evaluate.inception_weights={tmp_path}/none.pth"]
    with pytest.raises(ConfigError) as told:
        load_config(overrides=mistakes, more=hardware_checks("run"))
    assert "evaluate.extractor: inception needs torch_fidelity, which is not installed: pip install" in str(
        told.value
    )
    assert f"evaluate.inception_weights: {tmp_path}/none.pth does not exist" in str(told.value)
    load_config(overrides=mistakes, more=hardware_checks("train"))  # which judges nothing


def test_a_python_without_the_packages_is_told_so():
    command = "import importlib.util as u, sys; u.find_spec = lambda name, package=None: None; "
    for start, expected in (("sys.argv = ['-m']; ", "error: "), ("", "ImportError: ")):  # a stage, a library
        words = [sys.executable, "-c", f"{command}{start}import pipeline"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith(expected)
        assert ". .venv/bin/activate" in last
        assert ("Traceback" in done.stderr) == (start == "")
