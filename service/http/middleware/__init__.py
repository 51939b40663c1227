"""The list of what every request passes, whatever its route."""

from collections.abc import Callable, Collection, Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service.access.gate import Gate
from service.http.middleware.access import Access
from service.http.middleware.cross_site import RefuseCrossSite
from service.http.middleware.observe import Observe
from service.http.middleware.ports import Ports
from service.http.middleware.traced import Traced
from service.http.protocol import Protocol
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing


def middleware(
    settings: Settings,
    *,
    metrics: Metrics,
    clock: Callable[[], float],
    tracing: Tracing | None,
    probe_ports: Collection[int],
    gate: Gate | None,
    protocols: Sequence[Protocol],
) -> list[Middleware]:
    """The first is the outermost. tracing: None if nothing is traced. gate: of a server that has access keys."""
    passed = [Middleware(Observe, metrics=metrics, clock=clock)]
    if settings.cors_origins:  # around all, so that the page of another origin can read errors too
        passed.insert(0, _readable_for(settings.cors_origins))
    if tracing is not None:
        passed.append(Middleware(Traced, tracing=tracing))
    if probe_ports:
        passed.append(Middleware(Ports, probes=probe_ports, metrics_port=settings.metrics_port))
    passed.append(Middleware(RefuseCrossSite, origins=frozenset(settings.cors_origins)))
    if gate is not None:
        passed.append(
            Middleware(Access, gate=gate, metrics=metrics, protocols=protocols, keyless=settings.keyless_protocols)
        )
    return passed


def _readable_for(origins: Collection[str]) -> Middleware:
    """No credentials are allowed, so that `*` is every header, of requests and of answers."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=("*",),
    )
