"""A Ray cluster of several nodes on one machine, each of which can be killed like a machine."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Nodes:
    """`ray start` in the foreground, a head without CPUs and any number of nodes, disturbing no other cluster.

    A context manager that ends all of them. Sets RAY_AUTH_* and RAY_ADDRESS for the processes started meanwhile.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: it holds Ray's sockets
        self.token = os.urandom(16).hex()
        (self.port,) = free_ports(1)
        self.head: subprocess.Popen | None = None
        self.joined: list[subprocess.Popen] = []

    @property
    def environment(self) -> dict[str, str]:
        """For processes that use this cluster."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def __enter__(self) -> "Nodes":
        (client,) = free_ports(1)  # Ray's own is taken where another cluster runs
        options = ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"]
        options.append(f"--ray-client-server-port={client}")
        self.head = self._start(*options, f"--temp-dir={self.folder}")
        return self

    def __exit__(self, *_: object) -> None:
        for node in [*reversed(self.joined), self.head]:
            if node is not None:
                _end(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *arguments: str) -> subprocess.Popen:
        listen, grpc, metrics = free_ports(3)
        # Importing pipeline.remote.connect binds local starts to loopback, where `ray start` refuses to be joined.
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
        environment |= {key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"}
        return subprocess.Popen(
            [
                Path(sys.executable).with_name("ray"), "start", "--block", "--node-ip-address=127.0.0.1",
                f"--dashboard-agent-listen-port={listen}", f"--dashboard-agent-grpc-port={grpc}",
                f"--metrics-export-port={metrics}", "--object-store-memory=100000000", *arguments,
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip

    def join(self, cpus: int = 1) -> None:
        """A new node joins."""
        self.joined.append(self._start(f"--address=127.0.0.1:{self.port}", f"--num-cpus={cpus}"))

    def replace_lost(self, cpus: int = 1) -> None:
        """As an autoscaler does: another node for each that is gone, also for one lost while it started."""
        lost = [node for node in self.joined if node.poll() is not None]
        for node in lost:
            self.joined.remove(node)
            self.join(cpus)

    def wait_for_nodes(self, cpus: int, timeout: float = 120) -> None:
        """Until all that were joined, with `cpus` each, are part of the cluster."""
        count = "import ray; ray.init(logging_level='ERROR'); print(ray.cluster_resources().get('CPU', 0))"
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.replace_lost(cpus)
            environment = os.environ | self.environment
            seen = subprocess.run([sys.executable, "-c", count], env=environment, capture_output=True, text=True)
            if seen.stdout.split()[-1:] == [str(float(cpus * len(self.joined)))]:
                return
        raise TimeoutError(f"the nodes did not join within {timeout} s: {seen.stdout}{seen.stderr}")

    def kill(self, number: int) -> list[psutil.Process]:
        """SIGKILL of everything on one node; what there was."""
        node = self.joined.pop(number)
        processes = _family(node)
        for process in processes:
            _kill(process)
        node.wait()
        return processes

    def wait_for_head(self, timeout: float = 60) -> None:
        """Until the head answers."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"Ray's head did not answer within {timeout} s")


def _family(node: subprocess.Popen) -> list[psutil.Process]:
    try:
        parent = psutil.Process(node.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _end(node: subprocess.Popen) -> None:
    processes = _family(node)
    node.terminate()
    _, alive = psutil.wait_procs(processes, timeout=20)
    for process in alive:
        _kill(process)
    node.wait()
