"""A proxy before an S3 server that answers badly on purpose: errors, cut connections, slow answers, outages."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Of a hundred requests, how many meet which fault. A lost answer is the worst: the server has done what it was asked.
FAULTS = {"500": 2, "503": 1, "lost request": 1, "lost answer": 1, "half an answer": 1, "slow": 5}
ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>injected</Message></Error>"
CODES = {"500": (500, ERROR % b"InternalError"), "503": (503, ERROR % b"SlowDown")}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *args):
        pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k not in ("Transfer-Encoding", "Content-Length")}
        try:
            upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = upstream.getresponse()
            kept = [(k, v) for k, v in answer.getheaders() if k not in ("Transfer-Encoding", "Connection")]
            return answer.status, kept, answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name != "Content-Length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:length])

    def _serve(self) -> None:
        body = self._body()
        fault = self.server.choose()
        if fault == "lost request":
            self.close_connection = True
        elif fault in CODES:
            status, content = CODES[fault]
            self._answer(status, [("Content-Type", "application/xml")], content)
        else:
            if fault == "slow":
                time.sleep(0.5)
            status, headers, content = self._forward(body)
            if fault == "lost answer":
                self.close_connection = True
            elif fault == "half an answer":
                self.close_connection = True
                self._answer(status, headers, content, len(content) // 2)
            else:
                self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve


class FaultyProxy(ThreadingHTTPServer):
    """Listens on loopback and forwards to `upstream`; `down` makes it cut every connection."""

    daemon_threads = True

    def __init__(self, upstream: int, seed: int = 0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.met = upstream, Counter()
        self.down = threading.Event()
        self._random, self._lock = random.Random(seed), threading.Lock()

    def choose(self) -> str:
        """The fault of the next request, or none."""
        with self._lock:
            fault = "lost request" if self.down.is_set() else self._draw()
            self.met[fault] += 1
            return fault

    def _draw(self) -> str:
        names = [*FAULTS, "none"]
        return self._random.choices(names, [*FAULTS.values(), 100 - sum(FAULTS.values())])[0]

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def faulty_proxy(upstream: int) -> Iterator[FaultyProxy]:
    """A running proxy."""
    proxy = FaultyProxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
