"""docs/cluster.md names files that exist and commands that the pipeline understands."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.config.load import load_config

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", DOCS, re.M | re.S)
COMMANDS = [
    line.strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if "python -m pipeline." in line
]


def test_named_files_exist():
    named = set(re.findall(r"\b((?:cluster|configs|tests|docs)/[\w./-]+\w)", DOCS))
    assert {"cluster/gpu.yaml", "cluster/aws-base.yaml", "cluster/Dockerfile"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_cluster_file_is_described():
    assert [path.name for path in (ROOT / "cluster").iterdir() if f"cluster/{path.name}" not in DOCS] == []


def test_there_is_a_run_for_every_kind_of_ray_up():
    assert len(COMMANDS) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_runs_are_valid_configurations(command):
    words = shlex.split(command.partition("python -m pipeline.run")[2], comments=True)
    config_file = None
    if words[0] == "--config":
        config_file, words = ROOT / words[1].removeprefix("/home/ray/ldcvae/"), words[2:]
    config = load_config(config_file, words)
    assert config.train.device == "cuda"
    assert config.train.num_workers == 2
