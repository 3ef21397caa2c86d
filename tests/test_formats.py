"""Format numbers: noted beside the sources that they were judged by, and what was kept under another one is stale."""

import ast
import json
from types import SimpleNamespace

import formats
import pytest
from formats import PARTS, current, digest_of_code, faults, files_behind, number_of, read_kept
from source_tree import MODULES

from pipeline import prepare
from pipeline.compare import cells
from pipeline.compare import stage as compare_stage
from pipeline.config.load import load_config
from pipeline.judge import classifier
from pipeline.prepare import stage as prepare_stage
from pipeline.store.folder import fingerprint
from pipeline.store.run import STAGES, Run, open_run


def test_no_source_has_changed_since_its_number_was_looked_at():
    told = list(faults(read_kept(), current()))
    if told:
        pytest.fail("\n".join(told), pytrace=False)


def test_every_stage_has_a_number_and_hands_it_over():
    assert set(STAGES.values()) == set(formats.STAGES) <= set(PARTS)
    for name in formats.STAGES:
        calls = [
            node
            for node in ast.walk(ast.parse(MODULES[f"pipeline.{name}.stage"].read_text("utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "run.stage"
        ]
        assert [ast.unparse(call.args[-1]) for call in calls] == ["FORMAT"], name
    with pytest.raises(LookupError, match=r"pipeline\.verify has no FORMAT"):
        number_of(formats.Part("pipeline.verify", "FORMAT", ()))


@pytest.mark.parametrize(
    ("part", "behind", "not_behind"),
    [
        ("prepare", "pipeline/prepare/parquet.py", "pipeline/prepare/__main__.py"),
        ("train", "ldcvae/networks.py", "ldcvae/rivals/fits.py"),  # by a lazy reference
        ("train", "pipeline/train/worker.py", "pipeline/remote/progress.py"),
        ("train", "ldcvae/directions/two_sample.py", "pipeline/store/run.py"),
        ("sample", "pipeline/store/data/shards.py", "ldcvae/training/sampler.py"),
        ("evaluate", "ldcvae/rivals/fits.py", "pipeline/train/worker.py"),
        ("report", "pipeline/judge/pages/page.html.j2", "ldcvae/__init__.py"),  # that the page's own template names
        ("tune", "pipeline/tune/plots.py", "pipeline/train/worker.py"),  # imported in a function
        ("compare", "pipeline/compare/claims.py", "pipeline/compare/judge.py"),
        ("autoencoder cell", "ldcvae/rivals/objectives.py", "ldcvae/rivals/fits.py"),
        ("generator cell", "ldcvae/densities/mcmc.py", "pipeline/compare/autoencoders.py"),
        ("decoder cell", "ldcvae/discriminator.py", "ldcvae/rivals/objectives.py"),
        ("classifier", "pipeline/judge/classifier.py", "ldcvae/model.py"),
    ],
)
def test_sources_are_what_decides_the_outputs(part, behind, not_behind):
    files = files_behind(PARTS[part])
    assert behind in files
    assert not_behind not in files


def test_only_what_code_does_is_hashed():
    code = 'FORMAT = 1\ndef double(x):\n    return f"{2 * x:.{3}f}"\n'
    same = '''"""Doubles."""
FORMAT = 2  # raised
"""Of the double."""

def double(x):  # twice
    """Two of them."""
    return (
        f"{2 * x:.{3}f}"
    )
'''
    assert digest_of_code(code) == digest_of_code(same)
    # The very digits: another Python must not find other ones.
    assert digest_of_code(code) == "60d499ede7a5ff0a"
    for other in (code.replace("2 * x", "3 * x"), code.replace("(x)", "(x=1)"), code.replace("{3}", "{4}"), code * 2):
        assert digest_of_code(code) != digest_of_code(other)


def entry(number, **sources):
    return {"format": number, "sources": {f"{name}.py": digest for name, digest in sources.items()}}


@pytest.mark.parametrize(
    ("kept", "now", "told"),
    [
        (entry(1, a="1", b="1"), entry(1, a="1", b="1"), None),
        (
            entry(1, a="1", b="1", c="1"),
            entry(1, a="1", b="2", d="1"),
            "train: b.py, c.py, d.py changed and FORMAT in pipeline/train/stage.py is still 1: raise it if outputs "
            "differ for the same configuration, then in any case `python tests/pipeline/formats.py --accept`",
        ),
        (
            entry(1, a="1"),
            entry(2, a="2"),
            "train: FORMAT in pipeline/train/stage.py is 2 now, noted is 1: "
            "`python tests/pipeline/formats.py --accept`",
        ),
        (
            entry(2, a="1"),
            entry(1, a="1"),
            "train: FORMAT in pipeline/train/stage.py fell from 2 to 1: what was kept under 1 once would count as "
            "made now",
        ),
    ],
)
def test_what_is_to_be_done_is_told_in_one_line(kept, now, told):
    assert list(faults({"train": kept}, {"train": now})) == ([] if told is None else [told])


def test_parts_that_come_and_go_are_told():
    noted = "`python tests/pipeline/formats.py --accept`"
    new, gone = faults({"old": entry(1)}, {"sample": entry(1, a="1")})
    assert new == f"sample: FORMAT in pipeline/sample/stage.py is 1 now, noted is 0: {noted}"
    assert gone == f"old: noted, but there is no such part: {noted}"


def test_accepting_notes_the_sources_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(formats, "KEPT", tmp_path / "formats.json")
    assert formats.main([]) == 1
    assert "train: FORMAT in pipeline/train/stage.py is" in capsys.readouterr().out
    assert formats.main(["--accept"]) == 0
    assert json.loads(formats.KEPT.read_text()) == current()
    capsys.readouterr()
    assert formats.main([]) == 0
    assert capsys.readouterr().out == "formats.json is up to date\n"


def test_a_raised_number_makes_a_stage_stale(tmp_path, monkeypatch, capsys):
    run = open_run(load_config(overrides=[f"storage={tmp_path}"]))
    first = prepare.run(run)
    assert prepare.run(run) == first
    monkeypatch.setattr(prepare_stage, "FORMAT", prepare_stage.FORMAT + 1)
    capsys.readouterr()
    second = prepare.run(run)
    assert "data: done in" in capsys.readouterr().out
    assert (second.fingerprint != first.fingerprint, second.digest) == (True, first.digest)
    assert prepare.run(run) == second
    assert "data: up to date" in capsys.readouterr().out


def test_number_one_is_what_0_1_wrote(tmp_path):
    run = open_run(load_config(overrides=[f"storage={tmp_path}"]))
    manifest = run.stage("data", {"a": 1}, lambda _: ([], {}), format=1)
    assert manifest.fingerprint == fingerprint({"version": "0.1.0", "stage": "data", "a": 1})
    assert run.stage("data", {"a": 1}, lambda _: ([], {}), format=2).fingerprint != manifest.fingerprint


def keys():
    config = load_config()
    autoencoder = cells.autoencoder_cell(config, "data", "features", "vae", None, 0)
    return autoencoder.key, cells.generator_cell(config, autoencoder, "gmm", None).key


@pytest.mark.parametrize(
    ("number", "changed"), [("AUTOENCODER_FORMAT", (True, True)), ("GENERATOR_FORMAT", (False, True))]
)
def test_a_raised_number_gives_cells_another_key_and_makes_the_comparison_stale(number, changed, monkeypatch):
    depends_on = []
    monkeypatch.setattr(Run, "stage", lambda self, stage, inputs, *more, **options: depends_on.append(inputs))
    monkeypatch.setattr(compare_stage.prepare, "run", lambda run: SimpleNamespace(digest="data"))
    run = open_run(load_config())
    before = keys()
    compare_stage.run(run)
    monkeypatch.setattr(cells, number, getattr(cells, number) + 1)
    after = keys()
    compare_stage.run(run)
    assert tuple(one != other for one, other in zip(before, after, strict=True)) == changed
    assert depends_on[0] != depends_on[1]


def test_a_raised_number_trains_the_classifier_again(tmp_path, monkeypatch):
    run = open_run(load_config(overrides=[f"storage={tmp_path}", "evaluate.classifier_epochs=1"]))
    prepare.run(run)
    monkeypatch.setattr(classifier, "CLASSIFIER_FORMAT", 1)
    trained = []
    train = classifier.train_classifier
    monkeypatch.setattr(classifier, "train_classifier", lambda *args: (trained.append(1), train(*args))[1])
    classifier.stored_classifier(run)
    classifier.stored_classifier(run)
    assert len(trained) == 1
    assert "format" not in run.folder.read_json("evaluation/classifier.json")["made_of"]  # as 0.1 wrote it
    monkeypatch.setattr(classifier, "CLASSIFIER_FORMAT", 2)
    classifier.stored_classifier(run)
    classifier.stored_classifier(run)
    assert len(trained) == 2
