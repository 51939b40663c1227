"""Around every request: its id, log line and metrics, and a 500 without internals if all else failed. Pure ASGI.

The 500 has the form of the request's protocol; a problem says the request's id too, which the headers have in any case.
"""

import logging
import random
import re
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.json import to_json
from service.http.problems import MEDIA_TYPE, problem, write_problem
from service.http.protocol import Answer, Protocol
from service.telemetry.metrics import Metrics

_log = logging.getLogger("visiontower.requests")
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Observe:
    """Counts and logs each HTTP request once it has been answered, by the route's template."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        request_id = _request_id(scope)
        status = 0

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception as error:
            _log.exception("unforeseen error", extra={"request_id": request_id})
            if status:
                raise  # half an answer is out: only closing the connection can say that it is not whole
            await _send_internal(observed_send, _internal(error, scope.get("protocol"), request_id))
        finally:
            seconds = self._clock() - started
            route = getattr(scope.get("route"), "path", "other")
            protocol = scope["protocol"].name if "protocol" in scope else "native"
            self._metrics.request(route, status or 499, seconds, protocol=protocol, served=scope.get("served"))
            _log.info(
                "%s %s %s",
                scope["method"],
                route,
                status or 499,
                extra={"request_id": request_id, "seconds": round(seconds, 6), "status": status or 499, "route": route},
            )


def _request_id(scope: Scope) -> str:
    """The caller's own X-Request-Id if it is a plain one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return f"{random.getrandbits(128):032x}"  # uuid4 asks the kernel each time, and lets go of the interpreter for it


def _internal(error: Exception, protocol: Protocol | None, request_id: str) -> Answer:
    if protocol is not None and protocol.write_error is not write_problem:
        return protocol.write_error(error)
    members = problem(error)
    return Answer(to_json({**members, "request_id": request_id}), MEDIA_TYPE, members["status"])


async def _send_internal(send: Send, answer: Answer) -> None:
    body = answer.content if isinstance(answer.content, bytes) else b"".join(answer.content)
    headers = [(b"content-type", answer.media_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
