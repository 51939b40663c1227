"""Refuses a request before it is dispatched, and before its body is read: for middleware."""

from fastapi import Response
from starlette.types import Receive, Scope, Send

from encoders.contract.errors import VisiontowerError
from service.http.exchange import own_path, record_of
from service.http.noting import note_refusal
from service.http.problems import write_problem
from service.http.protocol import Protocol


async def refuse(error: VisiontowerError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the error, in the form of the protocol that the path is of."""
    app = scope["app"]
    scope["route"] = app.route_of(scope)  # by which it is counted, whoever asked
    note_refusal(record_of(scope), error, app.state.metrics)
    protocol: Protocol | None = app.protocol_of(own_path(scope))
    if protocol is not None:
        scope["protocol"] = protocol
    answer = write_problem(error) if protocol is None else protocol.write_error(error)
    assert isinstance(answer.content, bytes)
    response = Response(answer.content, answer.status, dict(answer.headers), answer.media_type)
    await response(scope, receive, send)
