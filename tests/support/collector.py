"""A collector of traces: takes OTLP over HTTP on the loopback address."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collected:
    """endpoint: where it takes spans. requests: that came, with their headers in lower case."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests: list[tuple[dict[str, str], ExportTraceServiceRequest]] = []

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for _, request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def resources(self) -> list[dict[str, str]]:
        """What each sender says of itself."""
        return [
            {each.key: each.value.string_value for each in resource.resource.attributes}
            for _, request in self.requests
            for resource in request.resource_spans
        ]


@contextmanager
def collecting(*, answers: bool = True) -> Iterator[Collected]:
    """A collector; without `answers` it lets its clients wait for as long as it is there."""
    is_over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if not answers:
                is_over.wait(30)
                return
            assert self.path == "/v1/traces"
            headers = {name.lower(): value for name, value in self.headers.items()}
            collected.requests.append((headers, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collected = Collected(f"http://127.0.0.1:{server.server_port}/v1/traces")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collected
        finally:
            is_over.set()
            server.shutdown()
            thread.join()
