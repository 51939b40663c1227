"""Of a container: is its server ready, on whatever port it listens?"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import psutil
import pytest

from service.run.ready import is_ready


@contextmanager
def answering(status: int) -> Iterator[None]:
    """On a free port, which nobody is told."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (404, False)])
def test_readiness_is_that_of_the_answer(status: int, ready: bool) -> None:
    with answering(status):
        assert is_ready([psutil.Process()]) is ready


def test_one_of_several_ports_is_enough() -> None:
    """The others know nothing of health (with a port for metrics), or speak another protocol."""
    with answering(404), answering(200), answering(404):
        assert is_ready([psutil.Process()])


def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not is_ready([psutil.Process()])
