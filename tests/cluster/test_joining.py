"""A run on a cluster that has no workers yet, as autoscaling ones have: it says so, waits, and goes on."""

import threading
import time

import pytest
from nodes import Nodes
from processes import finish, run, start


@pytest.mark.slow
def test_training_waits_for_machines_that_come_later(tmp_path, monkeypatch):
    run("prepare", tmp_path)
    process = None
    with Nodes() as nodes:
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        nodes.wait_for_head()
        try:
            process = start("train", tmp_path)
            lines, waiting, deadline = [], threading.Event(), time.monotonic() + 300

            def read():
                for line in process.stdout:
                    lines.append(line)
                    if "waiting for 1 CPUs, the cluster has 0 now" in line:
                        waiting.set()

            reader = threading.Thread(target=read)
            reader.start()
            assert waiting.wait(90), [*lines, process.stderr.read() if process.poll() else ""]
            nodes.join()
            while reader.is_alive():
                nodes.replace_lost()
                assert time.monotonic() < deadline, lines
                reader.join(timeout=1)
            finish(process, timeout=30)
            assert any(line.startswith("train: done") for line in lines), lines
        finally:
            if process is not None and process.poll() is None:
                process.kill()
