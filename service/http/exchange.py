"""One request of a protocol: read, ask the engine, write. It stops at the deadline, or if the client leaves."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from functools import partial
from typing import Any

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from encoders.contract.errors import VisiontowerError
from service.caller import CALLER
from service.engine.engine import INLINE_VALUES, Engine
from service.engine.values import Result
from service.errors import DeadlineExceeded
from service.http.errors import BodyTooLarge, ClientGone
from service.http.inflate import inflated
from service.http.problems import refusal
from service.http.protocol import Answer, Asked, Incoming, Protocol, Route
from service.telemetry.metrics import Served

_READ_INLINE_BYTES = 65_536
"""Bodies up to this size are taken apart on the event loop."""
_UNWATCHED_S = 0.05
"""A client that leaves sooner is not worth noticing."""


class Dispatch:
    """ASGI: the protocols' routes by method and path; whatever else is asked for goes to `others`."""

    def __init__(self, exchanges: Mapping[tuple[str, str], "Exchange"], *, others: ASGIApp) -> None:
        self._exchanges = exchanges
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        exchange = self._exchanges.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if exchange is None:
            await self._others(scope, receive, send)
            return
        scope["route"] = exchange.route
        response = await exchange.respond(Request(scope, receive, send))
        await response(scope, receive, send)


class Exchange:
    """Answers the requests of one route. It stops at the deadline of the settings, or if the client leaves."""

    def __init__(self, protocol: Protocol, route: Route) -> None:
        self.route = route
        self._protocol = protocol

    async def respond(self, request: Request) -> Response:
        """The response; an error of ours in the protocol's form."""
        engine: Engine = request.app.state.engine
        CALLER.set(request.client.host if request.client else None)
        try:
            if engine.admission.is_full and self.route.has_images:
                engine.admission.check()
            async with asyncio.timeout(engine.settings.request_timeout_s) as limit:
                asked = await self._read(request, engine)
                answer = await _while_present(request, self._run(request, engine, asked))
        except VisiontowerError as error:
            answer = self._refused(error, engine)
        except TimeoutError:
            if not limit.expired():
                raise
            answer = self._refused(DeadlineExceeded(), engine)
        except ClientDisconnect:
            answer = self._refused(ClientGone(), engine)
        headers = {**answer.headers, "content-type": answer.media_type}  # as it is: no charset is added
        return Response(answer.content, answer.status, headers)

    async def _read(self, request: Request, engine: Engine) -> Asked:
        settings, headers = engine.settings, request.headers
        body = await read_body(
            request.stream(), content_length=headers.get("content-length"), max_bytes=settings.max_body_bytes
        )
        if "content-encoding" in headers:
            encoding = ",".join(headers.getlist("content-encoding"))
            body = await asyncio.to_thread(inflated, body, encoding, max_bytes=settings.max_body_bytes)
        incoming = Incoming(
            body,
            content_type=headers.get("content-type", ""),
            query=request.scope["query_string"],
            accept=",".join(headers.getlist("accept")),
            settings=settings,
        )
        if len(incoming.body) <= _READ_INLINE_BYTES:
            return self.route.read(incoming)
        return await asyncio.to_thread(self.route.read, incoming)

    async def _run(self, request: Request, engine: Engine, asked: Asked) -> Answer:
        result: Result = await engine.run(asked.request)
        started = engine.clock()
        if result.values <= INLINE_VALUES:
            answer = self.route.write(result, asked.reply)
        else:
            answer = await engine.on_pool(partial(self.route.write, result, asked.reply))
        request.scope["served"] = Served(result.model, engine.clock() - started)  # for the middleware that counts
        return answer

    def _refused(self, error: VisiontowerError, engine: Engine) -> Answer:
        if (reason := refusal(error)) is not None:
            engine.metrics.rejected(reason)
        return self._protocol.write_error(error)


async def read_body(chunks: AsyncIterator[bytes], *, content_length: str | None, max_bytes: int) -> bytes:
    """The whole body, kept in memory. Raises BodyTooLarge, before reading if the length is announced."""
    announced = int(content_length[:20]) if content_length is not None and content_length.isdecimal() else 0
    if announced > max_bytes:
        raise BodyTooLarge(actual=announced, limit=max_bytes)
    received: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(actual=None, limit=max_bytes)
        received.append(chunk)
    return received[0] if len(received) == 1 else b"".join(received)


async def _while_present(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The work's result; if the client leaves first, the work is cancelled. Raises ClientGone.

    The work stays in the request's own task, and the client is looked after only once the work has taken a while: a
    second task was a good part of a small request.
    """
    task = asyncio.current_task()
    assert task is not None
    watch: asyncio.Task[None] | None = None
    is_gone = is_done = False

    def on_left(left: "asyncio.Task[None]") -> None:
        nonlocal is_gone
        if not is_done and not left.cancelled():
            is_gone = True
            task.cancel()

    def begin() -> None:
        nonlocal watch
        watch = asyncio.create_task(_left(request))
        watch.add_done_callback(on_left)

    timer = asyncio.get_running_loop().call_later(_UNWATCHED_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and task.uncancel() == 0:
            raise ClientGone from None
        raise  # the deadline's, or the server's own end
    finally:
        is_done = True
        timer.cancel()
        if watch is not None:
            watch.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
