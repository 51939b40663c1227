"""Around every request but those of probes, where traces are on: a span, by OpenTelemetry's conventions for HTTP.

Stands inside Observe, whose record it reads. What the log line says of a request, its span says too.
"""

from collections.abc import Iterator
from http import HTTPMethod, HTTPStatus

from opentelemetry.trace import SpanKind
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.exchange import own_path, record_of
from service.telemetry.request_record import RequestRecord
from service.telemetry.tracing import Trace, Tracing, mark_failed

_PROBES = ("/health/live", "/health/ready", "/metrics")
"""Asked for every few seconds, by nobody who would look at the trace."""
_BY_CONVENTION = {
    "status": "http.response.status_code",
    "request_bytes": "http.request.body.size",
    "answer_bytes": "http.response.body.size",
}
_ELSEWHERE = {"method", "route", "seconds", "stages", "trace_id"}
"""Facts that the span has in another form."""


class Traced:
    """Begins a trace for each HTTP request."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] != "http" or own_path(scope) in _PROBES:
            await self._app(scope, receive, send)
            return
        record = record_of(scope)
        method = record.method if record.method in HTTPMethod.__members__ else "_OTHER"
        attributes = {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
        }
        if (address := scope.get("server")) is not None and address[1] is not None:
            attributes |= {"server.address": address[0], "server.port": address[1]}
        name = "HTTP" if method == "_OTHER" else method
        with self._tracing.request(
            name, headers=scope["headers"], kind=SpanKind.SERVER, attributes=attributes
        ) as trace:
            if trace is None:
                await self._app(scope, receive, send)
                return
            record.trace_id = trace.id
            try:
                await self._app(scope, receive, send)
            except Exception:
                record.status = HTTPStatus.INTERNAL_SERVER_ERROR  # as Observe will answer
                raise
            finally:
                _describe(trace, record, name, scope)


def _describe(trace: Trace, record: RequestRecord, name: str, scope: Scope) -> None:
    """By what is known of the request at its end."""
    span = trace.span
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{name} {route}")
        span.set_attribute("http.route", route)
    span.set_attributes(dict(_attributes(record)))
    if record.status >= HTTPStatus.INTERNAL_SERVER_ERROR and record.outcome != "ok":
        mark_failed(span, record.outcome)


def _attributes(record: RequestRecord) -> Iterator[tuple[str, str | int]]:
    for name, value in record.facts():
        if name not in _ELSEWHERE and isinstance(value, str | int):
            yield _BY_CONVENTION.get(name, f"visiontower.{name}"), value
