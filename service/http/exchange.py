"""One request of a protocol: read, ask the engine, write. It stops at the deadline, or if the client leaves."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from encoders.contract.errors import VisiontowerError
from service.engine.engine import Engine
from service.errors import DeadlineExceeded
from service.http.errors import BodyTooLarge, ClientGone
from service.http.problems import refusal
from service.http.protocol import Answer, Asked, Incoming, Protocol, Route

_READ_INLINE_BYTES = 65_536
"""Bodies up to this size are taken apart on the event loop."""


class Exchange:
    """Answers the requests of one route."""

    def __init__(self, protocol: Protocol, route: Route) -> None:
        self._protocol = protocol
        self._route = route

    async def respond(self, request: Request) -> Response:
        """The response; an error of ours in the protocol's form."""
        engine: Engine = request.app.state.engine
        try:
            answer = await self._answer(request, engine)
        except VisiontowerError as error:
            if (reason := refusal(error)) is not None:
                engine.metrics.rejected(reason)
            answer = self._protocol.write_error(error)
        return Response(answer.content, answer.status, dict(answer.headers), answer.media_type)

    async def _answer(self, request: Request, engine: Engine) -> Answer:
        engine.admission.check()
        settings = engine.settings
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                headers = request.headers
                incoming = Incoming(
                    await read_body(
                        request.stream(),
                        content_length=headers.get("content-length"),
                        max_bytes=settings.max_body_bytes,
                    ),
                    content_type=headers.get("content-type", ""),
                    query=request.scope["query_string"],
                    accept=",".join(headers.getlist("accept")),
                    settings=settings,
                )
                if len(incoming.body) <= _READ_INLINE_BYTES:
                    asked = self._route.read(incoming)
                else:
                    asked = await asyncio.to_thread(self._route.read, incoming)
                return await _while_present(request, self._run(engine, asked))
        except TimeoutError as error:
            raise DeadlineExceeded from error
        except ClientDisconnect as error:
            raise ClientGone from error

    async def _run(self, engine: Engine, asked: Asked) -> Answer:
        result = await engine.run(asked.request)
        started = engine.clock()
        answer = await engine.beside(partial(self._route.write, result, asked.reply), values=result.values)
        engine.metrics.stage(result.model, "serialize", engine.clock() - started)
        return answer


async def read_body(chunks: AsyncIterator[bytes], *, content_length: str | None, max_bytes: int) -> bytes:
    """The whole body, kept in memory. Raises BodyTooLarge, before reading if the length is announced."""
    if content_length is not None and content_length.isdecimal() and int(content_length) > max_bytes:
        raise BodyTooLarge(actual=int(content_length), limit=max_bytes)
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

    The work stays in the request's own task: a second task, and waiting for two, was a good part of a small request.
    """
    task = asyncio.current_task()
    assert task is not None
    is_gone = is_done = False

    def on_left(leaving: "asyncio.Task[None]") -> None:
        nonlocal is_gone
        if not is_done and not leaving.cancelled():
            is_gone = True
            task.cancel()

    leaving = asyncio.create_task(_left(request))
    leaving.add_done_callback(on_left)
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and task.uncancel() == 0:
            raise ClientGone from None
        raise  # the deadline's, or the server's own end
    finally:
        is_done = True
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
