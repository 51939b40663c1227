"""The list of what every request passes, whatever its route."""

from collections.abc import Callable, Collection

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service.http.middleware.cross_site import RefuseCrossSite
from service.http.middleware.observe import Observe
from service.http.middleware.ports import Ports
from service.settings import Settings
from service.telemetry.metrics import Metrics


def middleware(
    settings: Settings, *, probe_ports: Collection[int], metrics: Metrics, clock: Callable[[], float]
) -> list[Middleware]:
    """The first is the outermost."""
    around = [Middleware(Observe, metrics=metrics, clock=clock)]
    if settings.cors_origins:  # around all, so that the page of another origin can read errors too
        around.insert(0, _readable_for(settings.cors_origins))
    if probe_ports:
        around.append(Middleware(Ports, probes=probe_ports, metrics_port=settings.metrics_port))
    return [*around, Middleware(RefuseCrossSite, origins=frozenset(settings.cors_origins))]


def _readable_for(origins: Collection[str]) -> Middleware:
    """No credentials are allowed, so that `*` is every header, of requests and of answers."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=("*",),
    )
