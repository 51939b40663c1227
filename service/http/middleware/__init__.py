"""The list of what every request passes, whatever its route."""

from collections.abc import Callable, Sequence

from starlette.middleware import Middleware

from service.access.gate import Gate
from service.http.middleware.access import Access
from service.http.middleware.observe import Observe
from service.http.protocol import Protocol
from service.http.siblings import Siblings
from service.settings import Settings
from service.telemetry.metrics import Metrics


def middleware(
    settings: Settings,
    *,
    metrics: Metrics,
    clock: Callable[[], float],
    gate: Gate | None,
    protocols: Sequence[Protocol],
    siblings: Siblings | None,
) -> list[Middleware]:
    """The first is the outermost. gate: of a server that has access keys."""
    passed = [Middleware(Observe, metrics=metrics, clock=clock)]
    if gate is not None:
        passed.append(
            Middleware(
                Access,
                gate=gate,
                metrics=metrics,
                protocols=protocols,
                keyless=settings.keyless_protocols,
                siblings=siblings,
            )
        )
    return passed
