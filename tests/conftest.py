"""One torch thread: the tests' matrices are small, and threads that fight over two cores make them slower."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: whichever process gets one last would keep the other waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """One local Ray for what a module's tests run within this process: its start takes longer than most of them."""
    from pipeline.config.load import load_config
    from pipeline.remote.connect import connect

    with connect(load_config(None, ["ray.num_cpus=2"])):
        yield
