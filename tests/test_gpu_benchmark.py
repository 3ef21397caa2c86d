"""benchmarks/gpu.py as far as a machine without a GPU goes, and without what a borrowed one may lack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
# Neither Ray nor Hugging Face's hub, and no module of the pipeline.
WITHOUT = """
import sys, runpy
for name in ("ray", "huggingface_hub", "annotated_types", "pydantic", "fsspec", "pipeline"):
    sys.modules[name] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if sys.modules.get(name, 0) is None else find(name, *rest)
sys.path.insert(0, FOLDER)
sys.argv = ["gpu.py", "--tiny", "--seconds", "0.02", "--json", JSON]
runpy.run_path(FOLDER + "/gpu.py", run_name="__main__")
"""


@pytest.mark.slow
def test_checks_pass_and_figures_are_written_without_ray(tmp_path):
    path = tmp_path / "gpu.json"
    code = f"FOLDER, JSON = {str(FOLDER)!r}, {str(path)!r}\n{WITHOUT}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks passed" in done.stdout
    found = json.loads(path.read_text())
    assert {row["check"].partition(":")[0].partition(",")[0] for row in found["checks"]} >= {
        "autoencoder", "decoder", "sampler", "channels_last"
    }  # fmt: skip
    (speeds,) = found["networks"]
    assert speeds["autoencoder_images_per_s"] > 0
    assert {row["direction"] for row in found["directions"]} == {"stein", "score_difference", "drift"}


def test_a_device_that_computes_otherwise_fails(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_checks
    import torch

    from ldcvae.directions import stein

    right = gpu_checks._autoencoder
    calls = []

    def wrong(device, *rest, **how):
        calls.append(device)
        found = right(device, *rest, **how)
        return found * 1.01 if len(calls) == 1 else found  # the first is the device's

    monkeypatch.setattr(gpu_checks, "_autoencoder", wrong)
    monkeypatch.setattr(gpu_checks, "_decoder", lambda device, bf16=False: torch.ones(2))
    monkeypatch.setattr(gpu_checks, "_direction", lambda device, name: stein.no_such_thing)
    monkeypatch.setattr(gpu_checks, "_resumed", lambda device, kind: 1e-9)
    precision = torch.get_float32_matmul_precision()
    passed = {row["check"]: row["passed"] for row in gpu_checks.checks(torch.device("cpu"))}
    assert torch.get_float32_matmul_precision() == precision  # or other tests compute in other bits
    assert not passed["autoencoder, elbo: float32"]
    assert passed["autoencoder, svgd: float32"]
    assert not passed["sampler, drift"]
    assert not passed["decoder: resumed, bit for bit"]


def test_a_compiled_network_that_fails_is_a_row_and_not_the_end(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu

    compiler = tmp_path / "python"
    monkeypatch.setattr(gpu.sys, "executable", str(compiler))
    for says, found in (
        ("echo warm; echo 123.5", 123.5),
        ("echo 'AcceleratorError: misaligned address' >&2; exit 1", "failed: AcceleratorError: misaligned address"),
        ("exit 1", "failed: without a word"),
        ("exec sleep 5", "not done in 1 s"),
    ):
        compiler.write_text(f"#!/bin/sh\n{says}\n")
        compiler.chmod(0o755)
        assert gpu.compiled_rate("8x8 grey, conv 8", 0.1, limit=1.0) == found
