"""/metrics and /health on ports of their own: there is nothing else there, and no access key is asked for."""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.errors import OnAnotherPort
from service.http.exchange import own_path
from service.http.refuse import refuse


class Ports:
    """Keeps what is for probes, and what is for callers, each on its ports.

    probes: the ports for probes. metrics_port: the one among them that the operator has named; None if the other ports
    answer /metrics and /health too. scope["is_probe"] tells what is inside that the request came by one of them.
    """

    def __init__(self, app: ASGIApp, *, probes: Collection[int], metrics_port: int | None) -> None:
        self._app = app
        self._probes = probes
        self._metrics_port = metrics_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] == "http":
            path = own_path(scope)
            for_probes = path == "/metrics" or path.startswith("/health/")
            scope["is_probe"] = scope["server"][1] in self._probes
            if scope["is_probe"] and not for_probes:
                await refuse(OnAnotherPort(path, port=None), scope, receive, send)
                return
            if for_probes and not scope["is_probe"] and self._metrics_port is not None:
                await refuse(OnAnotherPort(path, port=self._metrics_port), scope, receive, send)
                return
        await self._app(scope, receive, send)
