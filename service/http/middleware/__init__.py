"""The list of what every request passes, whatever its route."""

from collections.abc import Callable, Sequence

from starlette.middleware import Middleware

from service.access.gate import Gate
from service.http.middleware.access import Access
from service.http.middleware.observe import Observe
from service.http.middleware.traced import Traced
from service.http.protocol import Protocol
from service.http.siblings import Siblings
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing


def middleware(
    settings: Settings,
    *,
    metrics: Metrics,
    clock: Callable[[], float],
    tracing: Tracing | None,
    gate: Gate | None,
    protocols: Sequence[Protocol],
    siblings: Siblings | None,
) -> list[Middleware]:
    """The first is the outermost. tracing: None if nothing is traced. gate: of a server that has access keys."""
    passed = [Middleware(Observe, metrics=metrics, clock=clock)]
    if tracing is not None:
        passed.append(Middleware(Traced, tracing=tracing))
    if gate is not None:
        keyless = settings.keyless_protocols
        passed.append(
            Middleware(Access, gate=gate, metrics=metrics, protocols=protocols, keyless=keyless, siblings=siblings)
        )
    return passed
