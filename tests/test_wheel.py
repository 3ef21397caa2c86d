"""What an installed wheel holds: every stage, the templates of pages, the configurations; no clone in sight."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("run", "prepare", "train", "sample", "evaluate", "report", "tune", "compare", "verify")


def shell(*words, cwd, **environment):
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(the wheel's names, the folder it is installed in)."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # From a copy: building leaves its folders beside the sources.
    copy = folder / "source"
    shell("git", "clone", "--quiet", ROOT, copy, cwd=folder)
    shell("cp", "-r", ROOT / "ldcvae", ROOT / "pipeline", ROOT / "configs", ROOT / "pyproject.toml", copy, cwd=folder)
    shell(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy, cwd=folder)
    wheel = next(folder.glob("ldcvae-*.whl"))
    shell(*pip, "install", "--quiet", "--no-deps", "--target", folder / "site", wheel, cwd=folder)
    return zipfile.ZipFile(wheel).namelist(), folder / "site"


@pytest.mark.slow
def test_the_wheel_has_all_modules_templates_and_configurations(installed):
    names, _ = installed
    for package in ("ldcvae", "pipeline"):
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert modules <= set(names)
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*.j2")} <= set(names)
    configs = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert configs == {Path(name).name for name in names if "share/ldcvae/configs/" in name}
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples"))]


@pytest.mark.slow
def test_stages_run_from_the_wheel(installed, tmp_path):
    _, site = installed
    python = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    # -P: not the current folder, which is a clone's when the tests run.
    assert "stages:" in shell(sys.executable, "-P", "-m", "pipeline", cwd=tmp_path, **python)
    assert all((site / f"bin/ldcvae-{stage}").exists() for stage in STAGES)
    assert shell(site / "bin/ldcvae-tune", "--version", cwd=tmp_path, **python) == "ldcvae 0.2.0\n"
    # A configuration by the name it has in the repository, the console script, and a page from the templates.
    out = shell(site / "bin/ldcvae-prepare", "--config", "configs/digits.yaml", cwd=tmp_path, **python)
    assert "1,797 images" in out
    kept = ROOT / "tests/data/run-0.1"
    shell("cp", "-r", kept, tmp_path / "runs/run-0.1", cwd=tmp_path)
    shell(site / "bin/ldcvae-report", "--config", kept / "config.yaml", cwd=tmp_path, **python)
    assert "<html" in (tmp_path / "runs/run-0.1/report/index.html").read_text()
