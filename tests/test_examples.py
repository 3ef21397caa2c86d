"""The notebook runs from its first cell to its last, and shows what it says."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples/digits.ipynb"


@pytest.mark.slow
def test_the_digits_notebook_runs(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": os.fspath(NOTEBOOK.parent)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    table = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    fd, mmd2 = (
        {words[0]: float(words[column]) for words in map(str.split, table.splitlines()[1:])} for column in (1, 2)
    )
    assert max(fd["encoder"], fd["sampler"]) < fd["prior"]
    assert abs(fd["sampler"] - fd["encoder"]) < 0.2  # at the bound, where one draw does not say which is lower
    assert mmd2["sampler"] < mmd2["prior"]
    said = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in said if "IProgress not found" not in text]  # tqdm's, without ipywidgets


def test_the_notebook_is_kept_without_outputs():
    """Pictures in the repository would change with every run; who opens it runs it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
