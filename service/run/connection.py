"""One connection, and the door that all come through: what a client may send, and in what time.

uvicorn stays: it is well kept, it is fast, and its parser (httptools) is that of Node.js. It leaves open how much a
client may send ahead of a request, and for how long it may send, read or do nothing. `Connection` adds these limits to
uvicorn's own protocol, which parses and answers as before.

An answer that begins before its request has come whole closes the connection: nobody reads the rest of a refused body.
For `_LINGERING_S` what still comes is dropped, so that the client gets to see the answer; a connection closed with
unread bytes would take it from it.

No connection has a timer of its own. The door looks at all of them once a second.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias

import httptools
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from encoders.contract.errors import VisiontowerError
from service.http.errors import HeadTooLarge, MalformedRequest, RequestTooSlow, TooManyConnections
from service.http.headers import ALWAYS
from service.http.problems import problem_type, write_problem
from service.http.protocol import Answer
from service.settings import Settings
from service.telemetry.metrics import Metrics

_HEAD_BYTES = 32_768
"""Of the request line and the headers together; also of chunk headers and trailers between two bytes of a body."""
_HEADERS = 100
_FREE_PIECES, _PIECE_BYTES = 4096, 64
"""Pieces of a body that may have any size; those beyond must have that many bytes on average. Each costs a call."""
_PIPELINED = 8
"""Requests that may wait on a connection for the answer to the one before."""
_MOVED_BYTES = 262_144
"""Of a body, that must come within the stall timeout; of an answer, as many are handed to the transport at a time."""
_UNSENT_BYTES = 131_072
"""Of an answer, that the system may hold ahead of what the client has room for. By itself it holds megabytes: a slow
reader would not be seen to read."""
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_SPARE = 64
"""Connections beyond the limit that are let in for the paths below, and to be told about the limit. Of those on the
ports for probes, which the limit leaves out, there may be as many."""
_FOR_PROBES = (b"/health/", b"/metrics")
_FRAMING = (b"content-length", b"transfer-encoding")
_LINGERING_S = 2.0
_SWEEP_S = 1.0

Waits: TypeAlias = Literal["request", "head", "body", "answer", "last answer", "end"]
"""For what a connection waits. From `last answer` on, what comes is dropped; `end`: all is said."""


class Door:
    """The limits of all connections of one server, and how many are open. Lives on the event loop.

    probe_ports: on which connections are let in however many there are on others. clock: seconds, by which deadlines
    are kept.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        probe_ports: Collection[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.clock = clock
        self.connections: set[Connection] = set()
        self._probe_ports = probe_ports
        self._probes: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether more connections are open than the settings allow."""
        return len(self.connections) - len(self._probes) > self.settings.max_connections

    def is_probe(self, connection: "Connection") -> bool:
        """Whether it came to a port for probes."""
        return connection in self._probes

    def enter(self, connection: "Connection", *, port: int) -> bool:
        """Count the connection, that came to this port. Gives False if there is no room even for a word."""
        self.connections.add(connection)
        self.metrics.connections(len(self.connections))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._tick)
        if port in self._probe_ports:
            self._probes.add(connection)
            return len(self._probes) <= _SPARE
        return len(self.connections) - len(self._probes) <= self.settings.max_connections + _SPARE

    def leave(self, connection: "Connection") -> None:
        """The connection is closed."""
        self.connections.discard(connection)
        self._probes.discard(connection)
        self.metrics.connections(len(self.connections))

    def sweep(self) -> None:
        """Close the connections whose time is up."""
        now = self.clock()
        for connection in list(self.connections):
            connection.check(now)

    def too_many(self, connection: "Connection") -> TooManyConnections:
        """The error for a connection beyond the limit, counted."""
        error = TooManyConnections(limit=_SPARE if self.is_probe(connection) else self.settings.max_connections)
        self.metrics.rejected(problem_type(error).slug)
        return error

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._tick) if self.connections else None
        self.sweep()


class _Outgoing:
    """The transport as an answer sees it: closing it lets the client read the answer first."""

    def __init__(self, connection: "Connection") -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.close


class _Body:
    """A body that is parsed by itself, as the parser calls it. What comes behind it is dropped."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._is_whole = False

    def on_body(self, body: bytes) -> None:
        """As httptools."""
        if not self._is_whole:
            self._connection.on_body(body)

    def on_message_complete(self) -> None:
        """As httptools."""
        if not self._is_whole:
            self._is_whole = True
            self._connection.on_message_complete()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, within limits."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        door: Door,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._door = door
        self._served = self.app
        self._running: RequestResponseCycle | None = None
        self.waits: Waits = "head"
        self._since = 0.0  # on the door's clock: when it began to wait for that
        self._unread_since: float | None = None  # when the bytes of an answer were seen to wait for the client
        self._is_spare = False
        self._has_begun = False  # a request whose head is not complete
        self._keeps_alive = False  # after the answer to the request that comes now
        self.moved = 0  # bytes of the body since it began to wait
        self._came = self._pieces = 0  # bytes of the whole body, and the pieces in which they came
        self._bare = 0  # bytes since the last that were a body's, or the end of a head
        self._is_bare = True  # whether those fed to the parser now have held none
        self._refusal: VisiontowerError | None = None  # why a callback of the parser has stopped it

    # As asyncio calls it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """As asyncio.Protocol."""
        super().connection_made(transport)
        self._outgoing = _Outgoing(self)
        self._since = self._door.clock()
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        has_room = self._door.enter(self, port=transport.get_extra_info("sockname")[1])
        self._is_spare = self._door.is_full and not self._door.is_probe(self)
        if not has_room:
            transport.write(_response(self._door.too_many(self)))
            self._close_now()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio.Protocol."""
        self._door.leave(self)
        self.waits = "end"
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As asyncio.Protocol."""
        if self.waits in ("last answer", "end"):
            return
        if self.waits == "request":
            self._wait("head")
        self._is_bare = True
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or MalformedRequest("it is not HTTP/1.1"))
            return
        self._bare = self._bare + len(data) if self._is_bare else 0
        if self._bare > _HEAD_BYTES:
            self._refuse(HeadTooLarge(limit=_HEAD_BYTES, most_headers=_HEADERS))

    def resume_writing(self) -> None:
        """As asyncio.Protocol: the client has read most of what waited."""
        self._unread_since = None
        super().resume_writing()

    # As the parser calls it

    def on_message_begin(self) -> None:
        """As httptools."""
        self._has_begun = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """As httptools. What follows a body in chunks is no header."""
        if self._has_begun:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """As httptools."""
        size, hosts, coding, version = len(self.url), 0, b"", self.parser.get_http_version()
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                coding = value
        if size > _HEAD_BYTES or len(self.headers) > _HEADERS:
            self._stop(HeadTooLarge(limit=_HEAD_BYTES, most_headers=_HEADERS))
        if version not in ("1.0", "1.1"):
            self._stop(MalformedRequest("it is not HTTP/1.1"))
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            self._stop(MalformedRequest(f"it has {hosts or 'no'} Host headers, and HTTP/1.1 asks for one"))
        if coding and (version == "1.0" or coding.strip().lower() != b"chunked"):
            self._stop(MalformedRequest("its Transfer-Encoding is not that of HTTP/1.1 alone, which is chunked"))
        if len(self.pipeline) == _PIPELINED:
            self._stop(MalformedRequest(f"over {_PIPELINED} requests wait on this connection"))
        if self._is_spare:
            self._is_spare = self._door.is_full
            is_refused = self._is_spare and not self.url.startswith(_FOR_PROBES)
            self.app = self._refuse_politely if is_refused else self._served
        super().on_headers_complete()
        self._has_begun = self._is_bare = False
        cycle = self.cycle
        cycle.transport = self._outgoing  # type: ignore[assignment]  # it uses these three methods
        self._keeps_alive, cycle.keep_alive = cycle.keep_alive and not self._is_spare, False  # until it has come whole
        if not self.pipeline:
            self._begin(cycle)

    def on_body(self, body: bytes) -> None:
        """As httptools."""
        if self.pipeline:
            self._stop(MalformedRequest("it has a body, and came before the answer to the one ahead of it"))
        self._is_bare = False
        self.moved += len(body)
        self._came += len(body)
        self._pieces += 1
        if self._pieces > _FREE_PIECES + self._came // _PIECE_BYTES:
            self._stop(MalformedRequest(f"its body comes in pieces of fewer than {_PIECE_BYTES} bytes"))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As httptools."""
        self._is_bare = False
        if self._framing_beyond_upgrade():
            return
        self.cycle.keep_alive = self._keeps_alive
        if not self.pipeline:
            self.waits = "answer"
        super().on_message_complete()

    # As uvicorn calls it

    def on_response_complete(self) -> None:
        """As uvicorn; without its timer for idle connections."""
        self.server_state.total_requests += 1
        if self.waits == "end" or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if not self.pipeline:
            self._wait("head" if self._has_begun else "request")
            return
        cycle, app = self.pipeline.pop()
        self._begin(cycle)
        self._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """As uvicorn: close when the answer is out."""
        self._keeps_alive = False
        super().shutdown()

    # As the door and the answers call it

    def check(self, now: float) -> None:
        """Close the connection if its time is up."""
        settings, waited = self._door.settings, now - self._since
        if not self.transport.get_write_buffer_size():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > settings.stall_timeout_s:
            self._door.metrics.closed("unread-answer")
            self.transport.abort()
            return
        match self.waits:
            case "end":
                if waited > _LINGERING_S and self._unread_since is None:
                    self.transport.abort()
            case "request":
                if waited > settings.idle_timeout_s:
                    self._door.metrics.closed("idle")
                    self._close_now()
            case "head":
                limit = _LINGERING_S if self._is_spare else settings.header_timeout_s
                if waited <= limit:
                    return
                if self._bare or self._has_begun:
                    self._refuse(RequestTooSlow("The head of the request has not come", seconds=limit))
                else:  # there is nothing to answer
                    self._door.metrics.closed("silent")
                    self._close_now()
            case "body":
                if self.moved >= _MOVED_BYTES or self.flow.read_paused:
                    self.moved = 0
                    self._since = now
                elif waited > (limit := settings.stall_timeout_s):
                    self._refuse(RequestTooSlow(f"Only {self.moved:,} bytes of the body came", seconds=limit))

    def close(self) -> None:
        """Close when the client has read what was written; what it still sends is dropped until then."""
        if self.waits == "answer":  # the request has come whole
            self._close_now()
        elif self.waits != "end":
            self._linger()

    def _parse(self, data: bytes) -> None:
        """Raises HttpParserError.

        The parser stops at a head that asks for another protocol. None is spoken here: the request is answered as
        others are, and its body is parsed by itself. So ask Java's client and `curl --http2`, in their first request.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._keeps_alive = self.cycle.keep_alive = False
            if framing := self._framing_beyond_upgrade():
                self.parser = httptools.HttpRequestParser(_Body(self))
                self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
                self.parser.feed_data(data[stop.args[0] :])

    def _framing_beyond_upgrade(self) -> bytes:
        """The header lines that say where the body ends, if the parser stopped ahead of it; else nothing."""
        if not self.parser.should_upgrade() or self.parser.get_method() == b"CONNECT":
            return b""
        return b"".join(b"%b: %b\r\n" % each for each in self.headers if each[0] in _FRAMING)

    def _begin(self, cycle: RequestResponseCycle) -> None:
        """This request's turn has come."""
        self._running = cycle
        self.moved = self._came = self._pieces = 0
        self._unread_since = None  # who asks again is there
        self._wait("body" if cycle.more_body else "answer")

    def _wait(self, what: Waits) -> None:
        self.waits, self._since = what, self._door.clock()

    def _stop(self, error: VisiontowerError) -> None:
        """Out of a callback of the parser. Always raises; the parser makes an error of its own of it."""
        self._refusal = error
        raise error

    def _refuse(self, error: VisiontowerError) -> None:
        """Answer here, in place of the app, and close. A request whose turn it is, and that came whole, comes first."""
        self._door.metrics.closed(problem_type(error).slug)
        running = self._running
        if running is not None and not running.response_complete:
            if running.response_started or not running.more_body:
                running.keep_alive = False
                self.pipeline.clear()
                self._wait("last answer")
                return
            running.disconnected = True  # its body will not come: the app need not wait for it
            running.waiting_for_100_continue = False
            running.message_event.set()
        self.transport.write(_response(error))
        self._linger()

    def _linger(self) -> None:
        """Say that no more is written, and drop what comes until the client closes, or the door does."""
        self._wait("end")
        if self._running is not None:
            self._running.body = bytearray()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close_now(self) -> None:
        self._wait("end")
        self.transport.close()

    async def _refuse_politely(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """An ASGI app: the answer on a connection beyond the limit."""
        answer = write_problem(self._door.too_many(self))
        assert isinstance(answer.content, bytes)
        headers = [(name.encode(), value.encode()) for name, value in _headers(answer).items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.content, "more_body": False})


def _response(error: VisiontowerError) -> bytes:
    """The bytes of a whole answer, after which the connection closes."""
    answer = write_problem(error)
    assert isinstance(answer.content, bytes)
    lines = "".join(f"{name}: {value}\r\n" for name, value in _headers(answer).items())
    return STATUS_LINE[answer.status] + lines.encode() + b"\r\n" + answer.content


def _headers(answer: Answer) -> dict[str, str]:
    return {
        **answer.headers,
        **ALWAYS,
        "content-type": answer.media_type,
        "content-length": str(len(answer.content)),
        "connection": "close",
    }
