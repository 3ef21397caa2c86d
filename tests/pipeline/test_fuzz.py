"""Ten thousand damaged inputs: each ends in a result or in one clear error, and nothing is written anywhere.

What is read: the configuration, image files, and every JSON file of a run. A JSON file is damaged in two ways: as
bytes, which its hash catches, and as content whose hash fits, which only somebody who means it can make.
"""

import contextlib
import copy
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import encoded
from PIL import Image
from processes import ROOT

from pipeline.compare.cells import read_record
from pipeline.config.errors import PipelineError
from pipeline.config.load import Config, describe_keys, dump_yaml, load_config, parse_config
from pipeline.judge.classifier import stored_classifier
from pipeline.prepare.decode import BadImage, Form, decode
from pipeline.prepare.idx import load_idx
from pipeline.report.make import _names, _table
from pipeline.store import lease
from pipeline.store.checkpoint import load_state, save_state
from pipeline.store.data.shards import load_split
from pipeline.store.data.stored import StoredSplit
from pipeline.store.folder import Folder, fingerprint, sha256
from pipeline.store.history import read_history
from pipeline.store.manifest import parse_manifest
from pipeline.store.model import load_model
from pipeline.store.run import open_run
from pipeline.store.schema import Metrics, parse_as
from pipeline.tune.study import JOURNAL, open_storage

FILE, OLD = ROOT / "configs/digits.yaml", ROOT / "tests/data/run-0.1"
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def cases(count):
    """So many cases, the same on every machine."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path, monkeypatch):
    """The test runs in an empty folder and names it empty: what it needs lies in `run`, and stays as it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    yield
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) in (["outside"], ["outside", "run"])


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
names = st.text(max_size=6)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)


def places(content, path=()):
    """Paths of all nodes of a JSON document."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def damaged(draw, document):
    """A JSON document with one to three nodes replaced, removed or added."""
    content = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places(content), key=repr)))
        if not path:
            return draw(values)
        *above, last = path
        parent = content
        for key in above:
            parent = parent[key]
        match draw(st.sampled_from(("replace", "remove", "add"))):
            case "replace":
                parent[last] = draw(values)
            case "remove":
                del parent[last]
            case _ if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = draw(values)
            case _:
                parent.insert(last, draw(values))
    return content


@st.composite
def mutated(draw, samples):
    """One of some byte strings with bits flipped, parts cut out, doubled or overwritten."""
    content = bytearray(draw(st.sampled_from(samples)))
    rng = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(rng.randint(1, 6)):
        if not content:
            break
        at, length = rng.randrange(len(content)), rng.choice((1, 2, 4, 64))
        match rng.randrange(5):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = content[at : at + length]
            case 3:
                content[at : at + length] = rng.randbytes(len(content[at : at + length]))
            case _:
                content[at : at + length] = rng.choice((b"\0", b"\xff")) * len(content[at : at + length])
    return bytes(content)


def ends_well(work, errors=PipelineError):
    """The work's result, or None where it ended in one of the errors that are meant for people."""
    try:
        return work()
    except errors as error:
        text = str(error)
        assert text
        assert "Traceback" not in text
        assert len(text) < 20_000
        return None


# The configuration

KEYS = sorted(name for name, *_ in describe_keys())
DEFAULT = yaml.safe_load(dump_yaml(Config()))


@cases(500)
@given(content=damaged(DEFAULT))
def test_configurations(content):
    ends_well(lambda: parse_config(content) if isinstance(content, dict) else None)


@cases(350)
@given(
    text=mutated([dump_yaml(Config()).encode(), (ROOT / "configs/digits.yaml").read_bytes()]) | st.binary(max_size=60)
)
def test_configuration_files(tmp_path, text):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run/c.yaml").write_bytes(text)
    config = ends_well(lambda: load_config(tmp_path / "run/c.yaml"))
    if config is not None:
        assert parse_config(yaml.safe_load(dump_yaml(config))) == config


@cases(500)
@given(
    key=st.sampled_from(KEYS) | st.text(max_size=20),
    value=st.text(max_size=12) | values.map(repr),
    rest=st.text(max_size=5),
)
def test_overrides(key, value, rest):
    config = ends_well(lambda: load_config(overrides=[f"{key}={value}", *([rest] if rest else [])]))
    if config is not None:  # one that names a place where something would be written
        inside = Path("/storage") / config.name
        assert inside.parent == Path("/storage")
        assert inside.resolve().parent == Path("/storage")


# Image files


def _images():
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 255, (9, 12), np.uint8))
    colour = Image.fromarray(rng.integers(0, 255, (12, 9, 3), np.uint8))
    files = [
        encoded(image, kind) for image in (grey, colour) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
    ]
    return [*files, encoded(colour.convert("P"), "PNG"), encoded(colour.convert("RGBA"), "PNG")]


@cases(1000)
@given(content=mutated(_images()) | st.binary(max_size=80))
def test_image_files(content):
    pixels = ends_well(lambda: decode(content, Form(image_size=8, channels=1)), BadImage)
    if pixels is not None:
        assert (pixels.shape, pixels.dtype) == ((1, 8, 8), np.uint8)


def _idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@cases(170)
@given(
    images=mutated([_idx(np.arange(48, dtype=np.uint8).reshape(3, 4, 4))]),
    labels=mutated([_idx(np.arange(3, dtype=np.uint8))]),
)
def test_idx_files(tmp_path, images, labels):
    (tmp_path / "run").mkdir(exist_ok=True)
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
    for name, content in zip(names, (images, labels), strict=True):
        (tmp_path / "run" / name).write_bytes(content)
    raw = ends_well(lambda: load_idx(Config().data, Folder(str(tmp_path / "run")), names))
    if raw is not None:
        assert len(raw.images) == len(raw.splits)


# The JSON files of a run


@pytest.fixture
def kept(tmp_path):
    """A run: a copy of the one of version 0.1."""
    shutil.copytree(OLD, tmp_path / "run")
    return tmp_path / "run"


def opened(folder):
    return open_run(load_config(folder / "config.yaml", [f"storage={folder.parent}", "name=run"]))


def forge(folder, stage, name, content):
    """Put content into a run with a manifest that it fits."""
    (folder / name).write_bytes(content)
    path = folder / stage / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"][name] = {"bytes": len(content), "sha256": sha256(content)}
    path.write_text(json.dumps(manifest))


def document(name):
    return json.loads((OLD / name).read_text())


def as_bytes(content):
    return json.dumps(content).encode()  # NaN and infinity as Python writes them


@cases(200)
@given(content=damaged(document("data/manifest.json")))
def test_manifest_of_the_data(kept, content):
    (kept / "data/manifest.json").write_bytes(as_bytes(content))
    run = opened(kept)
    ends_well(lambda: (run.shape, load_split(run, "test"), StoredSplit(run, "train").choose(5, 1)))


@cases(150)
@given(
    content=st.sampled_from(("train", "samples", "evaluation")).flatmap(
        lambda s: damaged(document(f"{s}/manifest.json"))
    )
)
def test_manifests(content):
    ends_well(lambda: parse_manifest(content), ValueError)


@cases(170)
@given(content=damaged(document("evaluation/metrics.json")))
def test_metrics(kept, content):
    forge(kept, "evaluation", "evaluation/metrics.json", as_bytes(content))
    run = opened(kept)

    def shown():
        found = run.output("evaluation", "evaluation/metrics.json")
        metrics = parse_as(Metrics, found, "metrics.json", "evaluate again")
        return _table(metrics, run.config, _names(run.config, metrics["generators"]), 0.1)

    ends_well(shown)


@cases(150)
@given(content=damaged(document("data/row_groups/train.json")))
def test_row_groups(kept, content):
    forge(kept, "data", "data/row_groups/train.json", as_bytes(content))
    ends_well(lambda: StoredSplit(opened(kept), "train").choose(5, 1))


@cases(100)  # slow: many of them build a network
@given(content=damaged(document("model/config.json")))
def test_the_models_configuration(kept, content):
    forge(kept, "train", "model/config.json", as_bytes(content))
    ends_well(lambda: load_model(opened(kept)))


@cases(150)
@given(content=mutated([(OLD / "model/model.safetensors").read_bytes()]))
def test_weights(kept, content):
    forge(kept, "train", "model/model.safetensors", content)
    ends_well(lambda: load_model(opened(kept)))


@cases(150)
@given(content=mutated([(OLD / "train/metrics.jsonl").read_bytes()]))
def test_history(kept, content):
    (kept / "train/metrics.jsonl").write_bytes(content)
    ends_well(lambda: read_history(opened(kept).folder))


@cases(200)
@given(content=damaged(document("evaluation/classifier.json")))
def test_the_classifiers_record(kept, content):
    (kept / "evaluation/classifier.json").write_bytes(as_bytes(content))
    run = opened(kept)
    made_of = content.get("made_of") if isinstance(content, dict) else None
    if made_of == document("evaluation/classifier.json")["made_of"] or not isinstance(made_of, dict):
        ends_well(lambda: stored_classifier(run))  # else a new one is trained


RECORD = {
    "cell": {"name": "gmm", "setting": 10, "seed": 0, "parent": "ab"},
    "selection": 3.0,
    "figures": {"fd": 3.0, "kid": None, "seconds": 1.5},
    "files": {"model.safetensors": "ab"},
    "finished": 1.7e9,
}


@cases(150)
@given(content=damaged(RECORD))
def test_records_of_cells(tmp_path, content):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run/record.json").write_bytes(as_bytes(content))
    record = ends_well(lambda: read_record(Folder(str(tmp_path / "run")), "record.json"))
    if record is not None:
        assert "failure" in record or record["figures"]["fd"] is not None


@cases(150)
@given(data=st.data())
def test_states_of_checkpoints(tmp_path, data):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    save_state({"step": 3, "optimizer": {0: torch.arange(4.0), "rate": 0.1}, "lines": [{"phase": "a"}]}, folder)
    found = json.loads((folder / "state.json").read_text())
    content = data.draw(damaged(found))
    if isinstance(content, dict) and "state" in content and data.draw(st.booleans()):
        with contextlib.suppress(ValueError):  # NaN
            content["state_sha256"] = fingerprint(content["state"])
    (folder / "state.json").write_bytes(as_bytes(content))
    ends_well(lambda: load_state(folder))


HOLDER = {
    "owner": "ab",
    "machine": "host pid:[1]",
    "pid": 4,
    "born": "7",
    "what": "train",
    "since": "now",
    "renewed": 0.0,
}


@cases(50)
@given(content=damaged(HOLDER))
def test_locks(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lease, "_SETTLE", 0.001)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / lease.LOCK).write_bytes(as_bytes(content))

    def hold():
        with lease.held(Folder(str(tmp_path / "run")), "train"):
            return True

    ends_well(hold)


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """A journal as Optuna writes it."""
    import optuna

    folder = Folder(str(tmp_path_factory.mktemp("study")))
    study = optuna.create_study(study_name="s", storage=open_storage(folder, None))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    return folder.read(JOURNAL)


@cases(200)
@given(data=st.data())
def test_journals_of_studies(journal, tmp_path, data):
    (tmp_path / "run/tune").mkdir(exist_ok=True, parents=True)
    (tmp_path / "run" / JOURNAL).write_bytes(data.draw(mutated([journal])))
    ends_well(lambda: open_storage(Folder(str(tmp_path / "run")), None).get_all_studies())
