"""Asks every request for an access key, before its body is read. In the list only if the server has keys.

A refusal has the form of the protocol to which the path belongs. Open without a key are health, the pages and what they
load, and the protocols that the settings open.
"""

from collections.abc import Iterable, Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from encoders.contract.errors import VisiontowerError
from service.access.gate import Gate
from service.access.keys import Keys
from service.http.exchange import own_path, record_of
from service.http.noting import note_refusal
from service.http.problems import write_problem
from service.http.protocol import Protocol
from service.http.siblings import Siblings
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
        siblings: Siblings | None,
    ) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics
        self._keyless = keyless
        self._siblings = siblings
        self._open = _OPEN | {each.path for protocol in protocols for each in protocol.routes if each.is_open}
        self._known: Keys | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._gate.keys is not self._known:
            self._known = self._gate.keys
            self._metrics.know_keys(self._known.by_name)
        path = own_path(scope)
        protocol: Protocol | None = scope["app"].protocol_of(path)
        record = record_of(scope)
        try:
            if not self._is_open(scope, path, protocol):
                scope["key"] = self._gate.enter(presented(scope["headers"]))
                record.key = scope["key"].name
        except VisiontowerError as error:
            note_refusal(record, error, self._metrics)
            if protocol is not None:
                scope["protocol"] = protocol
            answer = (write_problem if protocol is None else protocol.write_error)(error)
            await Response(answer.content, answer.status, answer.headers, answer.media_type)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope, path: str, protocol: Protocol | None) -> bool:
        if path in self._open or path.startswith(_OPEN_BELOW):
            return True
        if protocol is not None and protocol.name in self._keyless:
            return True
        # The parent of several processes asks each for its counts, on a port that is open to this machine alone.
        return path == "/metrics" and self._siblings is not None and scope["server"][1] == self._siblings.own


def presented(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The keys in a request's headers, each once. Never of its URL, which logs and proxies keep."""
    found = set()
    for name, value in headers:
        if name in _RAW:
            found.add(value.strip())
        elif name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            found.add(value[len(_BEARER) :].strip())
    return found - {b""}
