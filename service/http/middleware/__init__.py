"""The list of what every request passes, whatever its route."""

from collections.abc import Callable

from starlette.middleware import Middleware

from service.http.middleware.observe import Observe
from service.http.middleware.traced import Traced
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing


def middleware(*, metrics: Metrics, clock: Callable[[], float], tracing: Tracing | None) -> list[Middleware]:
    """The first is the outermost. tracing: None if nothing is traced."""
    traced = [] if tracing is None else [Middleware(Traced, tracing=tracing)]
    return [Middleware(Observe, metrics=metrics, clock=clock), *traced]
