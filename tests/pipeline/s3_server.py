"""An S3 server on loopback: moto's, in a process of its own."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodes import free_ports
from processes import wait_for

SECRET = "planted-3f9ac1d7e5b2"


def environment(port: int) -> dict[str, str]:
    """For clients of the server at this port."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextmanager
def s3_server(log: Path) -> Iterator[int]:
    """The port of a running server without buckets."""
    (port,) = free_ports(1)

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=1).status == 200
        except OSError:
            return False

    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=out, stderr=out
        )
        try:
            wait_for(answers, "answer of the S3 server", 60)
            yield port
        finally:
            server.terminate()
            server.wait(timeout=10)
