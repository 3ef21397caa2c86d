"""Variants from outside the tree: the code of docs/plugins.md, from the command line to the tables."""

import json
import os
import re
import subprocess
import sys

import pytest
from processes import ROOT, TINY

CODE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/plugins.md").read_text(), re.S)


def command(stage, folder, *arguments, expect=0):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", f"pipeline.{stage}", *arguments, *TINY, "storage=runs"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the command is started: with the documentation's three modules."""
    folder = tmp_path_factory.mktemp("plugins")
    assert len(CODE) == 3
    for name, code in zip(("my_variants", "my_network", "my_direction"), CODE, strict=True):
        (folder / f"{name}.py").write_text(code)
    return folder


def test_the_generator_has_ten_lines_or_so():
    assert sum(bool(line.strip()) for line in CODE[0].splitlines()) <= 10


@pytest.mark.slow
def test_a_generator_of_ones_own_in_compare_and_evaluate(folder):
    compared = [
        "compare.autoencoders={vae: []}",
        "compare.generators={jitter: [], nearest: [1.0], encoder: []}",
        "compare.seeds=1",
        "compare.selection_images=100",
        "train.epochs=2",
    ]
    plugins = ["--plugin", "my_variants", "--plugin", "my_direction"]
    command("compare", folder, *plugins, *compared)
    results = json.loads((folder / "runs/tiny/compare/results.json").read_text())
    rows = {row["generator"]: row for row in results["rows"]}
    assert list(rows) == ["jitter", "nearest", "encoder"]
    assert rows["jitter"]["label"] == "posterior means with noise"
    assert rows["nearest"]["label"] == "sampler net, nearest target"
    assert not results["failures"]
    # Means of what the encoder has seen: nearer to the training encodings than the posterior's own draws.
    assert rows["jitter"]["figures"]["nearest_train"] < rows["encoder"]["figures"]["nearest_train"]
    page = (folder / "runs/tiny/compare/index.html").read_text()
    assert "posterior means with noise" in page
    again = command("compare", folder, *plugins, *compared).stdout
    assert "compare: up to date" in again

    judged = ["evaluate.generators=[gmm, jitter, sampler, encoder]", "train.epochs=2"]
    network = ["--plugin", "my_network", "model.network=linear", "sampler.direction=nearest"]
    command("run", folder, *plugins, *network, *judged)
    metrics = json.loads((folder / "runs/tiny/evaluation/metrics.json").read_text())
    assert list(metrics["generators"]) == ["gmm", "jitter", "sampler", "encoder"]
    assert metrics["generators"]["jitter"]["fd"] > 0
    assert "Posterior means with noise" in (folder / "runs/tiny/report/index.html").read_text()


def test_without_its_module_a_name_is_unknown(folder):
    done = command("evaluate", folder, "evaluate.generators=[jitter]", expect=2)
    assert "evaluate.generators.0: must be one of" in done.stderr
    done = command("evaluate", folder, "--plugin", "my_variant", expect=2)
    assert "--plugin my_variant: ModuleNotFoundError" in done.stderr
    help_text = command("compare", folder, "--plugin", "my_direction", "--help").stdout
    assert "stein|score_difference|drift|nearest" in help_text
