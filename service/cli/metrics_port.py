"""The engine's metrics over HTTP while a command runs."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

from service.cli.arguments import ArgumentError

if TYPE_CHECKING:
    from service.engine.engine import Engine


@contextmanager
def metrics_served(engine: "Engine", port: int) -> Iterator[int]:
    """GET /metrics on 127.0.0.1, as the server has it. Gives the port; for 0 it is a free one. Raises ArgumentError."""
    from service.telemetry.metrics import TEXT

    loop = asyncio.get_running_loop()

    async def exposition() -> bytes:
        return engine.metrics.exposition(engine.now())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in ("/metrics", "/"):
                self.send_error(404)
                return
            body = asyncio.run_coroutine_threadsafe(exposition(), loop).result(timeout=10)
            self.send_response(200)
            self.send_header("Content-Type", TEXT.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise ArgumentError(f"--metrics-port {port}: {error.strerror}.") from error
    except OverflowError as error:
        raise ArgumentError(f"--metrics-port {port}: a port is a number from 0 to 65535.") from error
    with server:
        thread = Thread(target=partial(server.serve_forever, 0.05), name="metrics", daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
