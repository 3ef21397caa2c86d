"""A run on a cluster that has no workers yet, as autoscaling ones have: it says so, waits, and goes on."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from processes import finish, run, start


def free_ports(count):
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def ray_node(*arguments):
    """`ray start` in the foreground, on ports that disturb no other cluster of this machine."""
    listen, grpc, metrics = free_ports(3)
    # Importing pipeline.cluster binds local starts to loopback, which `ray start` refuses to be joined under.
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    return subprocess.Popen(
        [
            Path(sys.executable).with_name("ray"), "start", "--block", "--node-ip-address=127.0.0.1",
            f"--dashboard-agent-listen-port={listen}", f"--dashboard-agent-grpc-port={grpc}",
            f"--metrics-export-port={metrics}", "--object-store-memory=100000000", *arguments,
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip


def stop(node):
    """End a node and all that it has started."""
    processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    node.terminate()
    _, alive = psutil.wait_procs(processes, timeout=20)
    for process in alive:
        process.kill()


@pytest.mark.slow
def test_training_waits_for_machines_that_come_later(tmp_path, monkeypatch):
    run("prepare", tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.urandom(16).hex())
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: it holds Ray's sockets
    (port,) = free_ports(1)
    nodes = [
        ray_node("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={temporary}")
    ]
    process = None
    try:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
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
        while reader.is_alive():
            # As an autoscaler does, replace a machine that is lost while it starts: its ports may have been taken.
            if len(nodes) == 1 or nodes[-1].poll() is not None:
                assert len(nodes) < 5, "every machine that should join was lost"
                nodes.append(ray_node(f"--address=127.0.0.1:{port}", "--num-cpus=1"))
            assert time.monotonic() < deadline, lines
            reader.join(timeout=1)
        finish(process, timeout=30)
        assert any(line.startswith("train: done") for line in lines), lines
    finally:
        if process is not None and process.poll() is None:
            process.kill()
        for node in reversed(nodes):
            stop(node)
        shutil.rmtree(temporary, ignore_errors=True)
