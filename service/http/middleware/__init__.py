"""The list of what every request passes, whatever its route."""

from collections.abc import Callable

from starlette.middleware import Middleware

from service.http.middleware.observe import Observe
from service.telemetry.metrics import Metrics


def middleware(*, metrics: Metrics, clock: Callable[[], float]) -> list[Middleware]:
    """The first is the outermost."""
    return [Middleware(Observe, metrics=metrics, clock=clock)]
