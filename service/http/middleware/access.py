"""Asks every request for an access key, before its body is read. In the list only if the server has keys.

A refusal has the form of the protocol to which the path belongs. Open without a key are health, the pages and what they
load, and the protocols that the settings open.
"""

from collections.abc import Iterable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from encoders.contract.errors import VisiontowerError
from service.access.gate import Gate
from service.access.keys import Keys
from service.http.exchange import own_path, record_of
from service.http.protocol import Protocol
from service.http.refuse import refuse
from service.telemetry.metrics import Metrics

_OPEN = frozenset({"/", "/docs", "/openapi.json", "/problems", "/health/live", "/health/ready"})
_OPEN_BELOW = ("/web/", "/problems/")
_BEARER = b"bearer "
_RAW = (b"x-api-key", b"api-key")
"""Headers that hold a key as it is: Azure's SDK for OpenAI sends one, and many gateways."""


class Access:
    """A request that may go on has its `key` in its scope. keyless: names of protocols that are open to all."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        metrics: Metrics,
        protocols: Sequence[Protocol],
        keyless: Sequence[str],
    ) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics
        self._keyless = keyless
        self._open = _OPEN | {each.path for protocol in protocols for each in protocol.routes if each.is_open}
        self._known: Keys | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._gate.keys is not self._known:
            self._known = self._gate.keys
            self._metrics.know_keys(self._known.by_name.values())
        path = own_path(scope)
        protocol: Protocol | None = scope["app"].protocol_of(path)
        try:
            if not self._is_open(scope, path, protocol):
                scope["key"] = self._gate.enter(presented(scope["headers"]))
                record_of(scope).key = scope["key"].name
        except VisiontowerError as error:
            await refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope, path: str, protocol: Protocol | None) -> bool:
        if path in self._open or path.startswith(_OPEN_BELOW):
            return True
        if protocol is not None and protocol.name in self._keyless:
            return True
        return "is_probe" in scope and bool(scope["is_probe"])


def presented(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The keys in a request's headers, each once. Never of its URL, which logs and proxies keep."""
    found = set()
    for name, value in headers:
        if name in _RAW:
            found.add(value.strip())
        elif name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            found.add(value[len(_BEARER) :].strip())
    return found - {b""}
