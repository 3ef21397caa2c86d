"""benchmarks/suite.py: what it makes of the ratios that its scripts report."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import suite

    (tmp_path / "fast.py").write_text(
        f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n"
        "from bare import report\nreport('a / b', float(sys.argv[1]), 'lower', 2.0)\nreport('c / d', 4.0, 'higher')\n"
    )
    (tmp_path / "broken.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(suite, "FOLDER", tmp_path)
    monkeypatch.setattr(suite, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(suite, "SCRIPTS", {"fast": ["1.5"], "broken": []})
    return suite


def test_a_ratio_that_got_worse_is_marked_and_results_are_kept(suite, capsys):
    suite.main(["--only", "fast"])
    assert "| a / b | 1.5 | ≤ 2 | – | new |" in capsys.readouterr().out
    kept = json.loads(suite.RESULTS.read_text())
    assert [row["ratio"] for row in kept["ratios"]] == [1.5, 4.0]
    assert kept["ratios"][0]["python"] == ".".join(map(str, sys.version_info[:3]))
    suite.SCRIPTS["fast"] = ["1.9"]
    suite.main(["--only", "fast", "--keep"])
    out = capsys.readouterr().out
    assert "| a / b | 1.9 | ≤ 2 | 1.5 | +27 % **worse** |" in out
    assert "| c / d | 4 | – | 4 | +0 % |" in out
    assert "more than 20 % worse: a / b" in out
    assert json.loads(suite.RESULTS.read_text()) == kept


def test_what_others_have_measured_outlives_a_script_that_fails_and_unknown_ones_are_named(suite, capsys):
    assert suite.main(["--only", "broken,fast"]) == 1
    assert capsys.readouterr().out.rstrip().endswith("failed: broken")
    assert len(json.loads(suite.RESULTS.read_text())["ratios"]) == 2
    with pytest.raises(SystemExit):
        suite.main(["--only", "fest"])
    assert "no such script: fest; one of fast, broken" in capsys.readouterr().err


def test_every_script_is_there():
    import ast

    tree = ast.parse((FOLDER / "suite.py").read_text())
    (scripts,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "SCRIPTS"
    ]
    for name in ast.literal_eval(scripts):
        assert "report(" in (FOLDER / f"{name}.py").read_text(), name
