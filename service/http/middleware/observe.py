"""Around every request: its id, log line and metrics, and a 500 without internals if all else failed. Pure ASGI.

The 500 has the form of the request's protocol; a problem says the request's id too, which the headers have in any case.
"""

import logging
import random
import re
from collections.abc import Callable
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.headers import ALWAYS
from service.http.json import to_json
from service.http.problems import MEDIA_TYPE, problem, problem_type, write_problem
from service.http.protocol import Answer, Protocol
from service.telemetry.logs import REQUESTS
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import RequestRecord

_log = logging.getLogger(REQUESTS)
_ALWAYS = [(name.encode(), value.encode()) for name, value in ALWAYS.items()]
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
        record = scope["record"] = RequestRecord(_request_id(scope), scope["method"])
        has_begun = False

        async def observed_send(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                record.status = message["status"]
                request_id = (b"x-request-id", record.request_id.encode())
                message["headers"] = [*message.get("headers", []), request_id, *_ALWAYS]
            else:
                record.answer_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception as error:
            _log.exception("unforeseen error", extra={"request_id": record.request_id})
            record.outcome = problem_type(error).slug
            if has_begun:
                raise  # half an answer is out: only closing the connection can say that it is not whole
            await _send_internal(observed_send, _internal(error, scope.get("protocol"), record.request_id))
        finally:
            record.seconds = self._clock() - started
            record.route = getattr(scope.get("route"), "path", record.route)
            if "protocol" in scope:
                record.protocol = scope["protocol"].name
            self._metrics.request(record)
            level = logging.INFO if record.status < HTTPStatus.INTERNAL_SERVER_ERROR else logging.WARNING
            if _log.isEnabledFor(level):
                facts = dict(record.facts())
                _log.log(level, "%s %s %s", record.method, record.route, record.status, extra=facts)


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
