"""One request of a protocol: read, ask the engine, write. It stops at the deadline, or if the client leaves.

What it takes of the host's memory is asked of the account first: a body by its Content-Length, or as it comes; an
answer before the engine runs.
"""

import asyncio
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

from fastapi import Request, Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from encoders.contract.errors import VisiontowerError
from service.access.gate import Counted
from service.caller import CALLER
from service.engine.engine import Engine
from service.engine.postprocess import INLINE_VALUES
from service.engine.values import CacheUse, Result
from service.errors import AnswerTooLarge, DeadlineExceeded
from service.http.allowed import allowed, failures
from service.http.errors import BodyTooLarge, ClientGone
from service.http.inflate import inflated
from service.http.noting import note_refusal, note_request, note_result
from service.http.protocol import Answer, Asked, Incoming, Protocol, Route
from service.http.readers import Readers, price
from service.memory.account import Account, Hold
from service.telemetry.request_record import RequestRecord
from service.telemetry.tracing import TRACE, UNTRACED

_SMALL_BYTES = 65_536
"""Bodies up to this size are taken apart on the event loop. They, and answers up to it, are not asked of the account:
the number of connections bounds them."""
_SMALL_INPUT_BYTES = 262_144
"""Nor are pixels up to this size, one image of most models: the number of images that may wait bounds them."""
_PARSED, _PARSED_JSON = 1, 5
"""Of a larger body, what taking it apart takes beside it. A JSON text may have four bytes a character, and its base64
is decoded."""
_INFLATED = 16
"""Bytes that come out of a compressed one, about."""
_SENT_BYTES = 262_144
"""Of an answer, handed to the connection at a time: it waits until its client has read most of them."""
_DIGITS = 20
"""A number of bytes with as many is over any limit."""
_JOINED_BYTES = 4096
"""A piece of an answer up to this size is sent together with others."""
_UNLIMITED: AbstractContextManager[Counted | None] = nullcontext()
"""Of requests without an access key."""
_LISTS = ("accept", "content-encoding")
"""Headers that may be sent in several lines."""
_UNWATCHED_S = 0.05
"""Most requests are over by then. Before, no timer runs for the deadline, and a client that leaves is not noticed."""


def own_path(scope: Scope) -> str:
    """The path without the prefix below which a proxy serves the app: ASGI's `root_path`, with which `path` begins."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "").rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


def record_of(scope: Scope) -> RequestRecord:
    """Of the request; the middleware Observe has begun it."""
    record: RequestRecord = scope["record"]
    return record


class Dispatch:
    """ASGI: the protocols' routes by method and path; whatever else is asked for goes to `others`."""

    def __init__(self, exchanges: Sequence["Exchange"], *, others: ASGIApp) -> None:
        self._by_path: dict[tuple[str, str], Exchange] = {
            (each.route.method, each.route.path): each for each in exchanges if "{" not in each.route.path
        }
        self._by_pattern = [(compile_path(each.route.path)[0], each) for each in exchanges if "{" in each.route.path]
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        exchange = None
        if scope["type"] == "http":
            path = own_path(scope) if scope.get("root_path") else scope["path"]
            method = "GET" if scope["method"] == "HEAD" else scope["method"]  # uvicorn drops the body
            exchange = self._by_path.get((method, path)) or self._matching(scope, path, method=method)
        if exchange is None:
            await self._others(scope, receive, send)
            return
        scope["route"] = exchange.route
        scope["protocol"] = exchange.protocol  # for the middleware that counts, and answers what nobody foresaw
        response = await exchange.respond(Request(scope, receive, send))
        await response(scope, receive, send)

    def _matching(self, scope: Scope, path: str, *, method: str) -> "Exchange | None":
        """The first whose pattern matches; the scope then has the path's parameters."""
        for pattern, exchange in self._by_pattern:
            found = pattern.match(path)
            if found and exchange.route.method == method:
                scope["path_params"] = found.groupdict()
                return exchange
        return None


class Exchange:
    """Answers the requests of one route. It stops at the deadline of the settings, or if the client leaves.

    readers: take large bodies apart.
    """

    def __init__(self, protocol: Protocol, route: Route, *, readers: Readers) -> None:
        self.route = route
        self.protocol = protocol
        self._readers = readers

    async def respond(self, request: Request) -> Response:
        """The response; an error of ours in the protocol's form."""
        engine: Engine = request.app.state.engine
        client = request.scope.get("client")  # address and port
        CALLER.set(request.scope["record"].key or (client[0] if client else None))
        holds: list[Hold] = []
        try:
            answer = await self._answer(request, engine, holds)
        except BaseException:
            _release(holds)
            raise
        for hold in holds:
            if hold.stage == "body":  # and the images in it
                hold.release()
        return _Reply(answer, holds)

    async def _answer(self, request: Request, engine: Engine, holds: list[Hold]) -> Answer:
        try:
            if engine.admission.is_full and self.route.has_images:
                engine.admission.check()
            timeout_s = engine.settings.request_timeout_s
            deadline = engine.clock() + timeout_s
            async with asyncio.timeout(timeout_s if timeout_s <= _UNWATCHED_S else None) as limit:
                watch = _Watch(request, limit, timeout_s=timeout_s)
                try:
                    trace = TRACE.get()
                    with trace.stage("body") if trace else UNTRACED:
                        incoming = await self._incoming(request, engine, holds)
                    watch.has_body = True
                    work = self._run(request, engine, incoming, holds, deadline)
                    del incoming
                    return await work
                except asyncio.CancelledError:
                    if watch.is_gone and watch.task.uncancel() == 0:
                        raise ClientGone from None
                    raise  # the deadline's, or the server's own end
                finally:
                    watch.end()
        except VisiontowerError as error:
            return self._refused(error, request, engine)
        except TimeoutError:
            if not limit.expired():
                raise
            return self._refused(DeadlineExceeded(), request, engine)

    async def _incoming(self, request: Request, engine: Engine, holds: list[Hold]) -> Incoming:
        """The request, once its body has come."""
        settings, headers = engine.settings, _headers(request.scope)
        content_type = headers.get("content-type", "")
        is_json = content_type.lstrip()[:16].lower() == "application/json"
        max_bytes = min(settings.max_json_bytes, settings.max_body_bytes) if is_json else settings.max_body_bytes
        body = await read_body(
            request.receive,
            content_length=headers.get("content-length", ""),
            max_bytes=max_bytes,
            account=engine.account,
            holds=holds,
            is_json=is_json,
        )
        return Incoming(
            body,
            content_type=content_type,
            query=request.scope["query_string"],
            accept=headers.get("accept", ""),
            settings=settings,
            headers=headers,
            path=request.path_params,
            is_json=is_json,
            max_bytes=max_bytes,
        )

    async def _inflated(self, incoming: Incoming, encoding: str, account: Account, holds: list[Hold]) -> Incoming:
        hold = holds[0] if holds else account.hold("body")
        holds[:] = [hold]
        inflate = partial(inflated, max_bytes=incoming.max_bytes, account=account, is_json=incoming.is_json)
        work = partial(inflate, incoming.body, encoding)
        body = await self._readers.run(work, price=_INFLATED * len(incoming.body))
        hold.grow(len(body) - hold.nbytes)
        hold.shrink(len(body))
        return replace(incoming, body=body)

    async def _read(self, incoming: Incoming, holds: list[Hold]) -> Asked:
        body, limit = incoming.body, incoming.settings.max_json_bytes
        if self.route.json_bytes is not None:
            in_json = self.route.json_bytes(incoming)
        else:
            in_json = len(body) if incoming.is_json else 0
        if in_json > limit:
            raise BodyTooLarge(actual=in_json, limit=limit, is_json=True)
        if len(body) <= _SMALL_BYTES:
            return self.route.read(incoming)
        hold = holds[0]
        hold.grow(len(body) * _PARSED + in_json * (_PARSED_JSON - _PARSED))
        asked = await self._readers.run(partial(self.route.read, incoming), price=price(body, in_json=in_json))
        hold.shrink(len(body))
        return asked

    async def _run(
        self, request: Request, engine: Engine, incoming: Incoming, holds: list[Hold], deadline: float
    ) -> Answer:
        trace = TRACE.get()
        with trace.stage("read") if trace else UNTRACED:
            encoding = incoming.headers.get("content-encoding")
            if encoding is not None:
                incoming = await self._inflated(incoming, encoding, engine.account, holds)
            is_little = len(incoming.body) <= min(_SMALL_BYTES, incoming.settings.max_json_bytes)
            asked = self.route.read(incoming) if is_little else await self._read(incoming, holds)
        record: RequestRecord = request.scope["record"]
        record.request_bytes = len(incoming.body)
        note_request(record, asked.request, engine.models)
        del incoming  # the body would stay as long as the answer is on its way
        question, reply, permit = asked.request, asked.reply, _UNLIMITED
        if (key := request.scope.get("key")) is not None:
            question = allowed(question, key, engine.models)
            permit = request.app.state.gate.images(key, record.images)
        if asked.reply_of is not None:
            reply = asked.reply_of(engine.models.specs[engine.models.id_of(question.model)])
        numbers, pixel_bytes = await engine.sizes(question)
        if asked.most_numbers is not None and numbers > asked.most_numbers:
            raise AnswerTooLarge(actual=numbers, limit=asked.most_numbers, advice=asked.advice)
        nbytes = numbers * asked.number_bytes + asked.other_bytes
        held = holds[0].nbytes if holds else 0
        if pixel_bytes > _SMALL_INPUT_BYTES:
            holds.append(engine.account.hold("input", pixel_bytes, beside=held))
            held += pixel_bytes
        if nbytes > _SMALL_BYTES:
            holds.append(engine.account.hold("answer", nbytes, beside=held))
        with permit as counted:
            result: Result = await engine.run(question, deadline=deadline)
            if counted is not None:
                failed, counted.if_refused = failures(result)
                counted.images -= failed
            started = engine.clock()
            with trace.stage("serialize") if trace else UNTRACED:
                if result.values <= INLINE_VALUES:
                    answer = self.route.write(result, reply)
                else:
                    answer = await engine.on_pool(partial(self.route.write, result, reply))
        note_result(record, result)
        record.stages["serialize"] = engine.clock() - started
        if result.cached is not None:
            answer = replace(answer, headers={**answer.headers, **_cache_headers(result.cached)})
        return answer

    def _refused(self, error: VisiontowerError, request: Request, engine: Engine) -> Answer:
        note_refusal(record_of(request.scope), error, engine.metrics)
        return self.protocol.write_error(error)


class _Reply(Response):
    """An answer on its way to its client; gives back what it holds of the account when it has been sent."""

    def __init__(self, answer: Answer, holds: Sequence[Hold]) -> None:
        content = answer.content
        self._pieces: Sequence[bytes | memoryview] = [content] if isinstance(content, bytes) else content
        self._holds = holds
        length = str(sum(map(len, self._pieces)))
        # The media type as it is: no charset is added.
        super().__init__(
            b"", answer.status, {**answer.headers, "content-type": answer.media_type, "content-length": length}
        )

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """As Response: none is added."""
        self.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if len(self._pieces) == 1 and len(self._pieces[0]) <= _SENT_BYTES:
                await send({"type": "http.response.body", "body": self._pieces[0]})
                return
            for portion in _portions(self._pieces):
                await send({"type": "http.response.body", "body": portion, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            _release(self._holds)


def _portions(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """What is sent at a time: large pieces in parts, small ones together."""
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) <= _JOINED_BYTES:
            small.append(piece)
            if len(small) < _SENT_BYTES // _JOINED_BYTES:
                continue
        if small:
            yield b"".join(small)
            small = []
        if len(piece) > _JOINED_BYTES:
            yield from (piece[start : start + _SENT_BYTES] for start in range(0, len(piece), _SENT_BYTES))
    if small:
        yield b"".join(small)


def _cache_headers(use: CacheUse) -> dict[str, str]:
    """Whether the rows were kept ones; Age: of the oldest, as RFC 9111 has it."""
    if not use.hits:
        return {"x-cache": "miss"}
    return {"x-cache": "partial" if use.misses else "hit", "age": str(int(use.age_s))}


def _release(holds: Iterable[Hold]) -> None:
    for hold in holds:
        hold.release()


def _headers(scope: Scope) -> dict[str, str]:
    """By name, which is in lower case. Of several lines of one name the first counts, but of lists all."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name in _LISTS:
            headers[name] += f",{value}"
    return headers


async def read_body(
    receive: Receive,
    *,
    content_length: str,
    max_bytes: int,
    account: Account,
    holds: list[Hold],
    is_json: bool = False,
) -> bytes:
    """The whole body, kept in memory; if it is not small, one hold more has its bytes: ahead of them if announced.

    Raises BodyTooLarge, HostMemoryFull, OverHostMemory, or ClientGone.
    """
    announced = int(content_length[:_DIGITS]) if content_length.isdecimal() else 0
    if announced > max_bytes:
        raise BodyTooLarge(actual=announced, limit=max_bytes, is_json=is_json)
    if announced > _SMALL_BYTES:
        holds.append(account.hold("body", announced))
    first, rest, size = b"", None, 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(actual=None, limit=max_bytes, is_json=is_json)
        if size > _SMALL_BYTES:
            if not holds:
                holds.append(account.hold("body"))
            holds[0].grow(size - holds[0].nbytes)
        if not first:
            first = chunk
        elif chunk:
            rest = rest or io.BytesIO(first)  # gives its bytes without a copy of them
            rest.seek(0, io.SEEK_END)
            rest.write(chunk)
        if not message.get("more_body"):
            return first if rest is None else rest.getvalue()


class _Watch:
    """Looks after a request that takes a while, and its task: whether its client leaves, and its deadline.

    Until then it is one timer. The work stays in the request's own task: a second task, and a timer for each of the
    two, were a good part of a small request.
    """

    def __init__(self, request: Request, limit: asyncio.Timeout, *, timeout_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.is_gone = False
        """Whether the client has left, and the task is cancelled for it."""
        self._request = request
        self._limit = limit
        self._timeout_s = timeout_s
        self.has_body = False
        """Whether the body has come, so that only the client's leaving is received from now on."""
        self._is_over = False
        self._leaving: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_UNWATCHED_S, self._begin)

    def end(self) -> None:
        """The request is over."""
        self._is_over = True
        self._timer.cancel()
        if self._leaving is not None:
            self._leaving.cancel()

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if self._limit.when() is None:
            self._limit.reschedule(loop.time() + self._timeout_s - _UNWATCHED_S)
        if not self.has_body:
            self._timer = loop.call_later(_UNWATCHED_S, self._begin)
            return
        self._leaving = asyncio.create_task(_left(self._request))
        self._leaving.add_done_callback(self._on_left)

    def _on_left(self, left: "asyncio.Task[None]") -> None:
        if not self._is_over and not left.cancelled():
            self.is_gone = True
            self.task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
