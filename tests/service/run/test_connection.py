"""What a connection may send, and in what time: real sockets, and a clock of the test's own."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop
from fastapi import FastAPI
from uvicorn.config import Config
from uvicorn.server import ServerState

from encoders.adapters.fake import FakeEncoder
from service.run.connection import Connection, Door
from tests.support.serving import Gate, app_of, image_bytes
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
PICTURE = image_bytes()
POST = b"POST /embed?output=pooled HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": uvloop.new_event_loop} if request.param else {}


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Client:
    """One client's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> "Answered":
        """The next answer, by its Content-Length."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return Answered(int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"])))

    async def is_closed(self) -> bool:
        """Wait for the end of what the server says; whether nothing more came."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    def leave(self) -> None:
        self.writer.transport.abort()


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def slug(self) -> str:
        slug: str = json.loads(self.body)["type"].removeprefix("/problems/")
        return slug

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


@dataclass
class Street:
    """A door that listens, its clock, and clients that come to it."""

    app: FastAPI
    door: Door
    clock: Clock
    port: int
    clients: list[Client] = field(default_factory=list)

    async def client(self, *, buffer: int | None = None) -> Client:
        """buffer: bytes that its system takes for it, about."""
        before = len(self.door.connections)
        end = socket.socket()
        end.setblocking(False)
        if buffer:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", self.port))
        client = Client(*await asyncio.open_connection(sock=end, limit=buffer or 2**16))
        self.clients.append(client)
        await until(lambda: len(self.door.connections) == before + 1)
        return client

    @property
    def connection(self) -> Connection:
        """The only one."""
        [connection] = self.door.connections
        return connection

    def pass_time(self, seconds: float) -> None:
        """In steps of the sweep's."""
        for _ in range(int(seconds)):
            self.clock.now += 1
            self.door.sweep()

    @property
    def held(self) -> dict[str, int]:
        return {stage: size for stage, size in self.app.state.engine.account.held.items() if size}


@asynccontextmanager
async def street(*encoders: FakeEncoder, is_for_probes: bool = False, **settings: Any) -> AsyncIterator[Street]:
    """is_for_probes: whether its port is one for probes."""
    app, clock = app_of(*encoders, **{"request_timeout_s": 10, **settings}), Clock()
    async with app.router.lifespan_context(app):
        end = socket.create_server(("127.0.0.1", 0))
        probes = {end.getsockname()[1]} if is_for_probes else ()
        door = Door(app.state.engine.settings, app.state.metrics, probe_ports=probes, clock=clock)
        config, state = Config(app, ws="none", log_config=None, access_log=False), ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(config, state, {}, door=door), sock=end
        )
        found = Street(app, door, clock, server.sockets[0].getsockname()[1])
        try:
            yield found
        finally:
            for client in found.clients:
                client.leave()
            await until(lambda: not door.connections)
            server.close()


def metric(street: Street, name: str) -> float:
    value = street.app.state.metrics.registry.get_sample_value(f"visiontower_{name.partition('{')[0]}", _labels(name))
    assert value is not None, name
    return float(value)


def _labels(name: str) -> dict[str, str]:
    inside = name.partition("{")[2].rstrip("}")
    return {inside.partition("=")[0]: inside.partition("=")[2]} if inside else {}


async def test_answers_come_as_from_uvicorn_and_the_connection_stays_open() -> None:
    async with street() as here:
        client = await here.client()
        for _ in range(3):
            client.send(POST + b"Content-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE)
            answer = await client.answer()
            assert (answer.status, answer.closes) == (200, False)
        assert here.connection.waits == "request"
        assert metric(here, "connections") == 1
        assert here.held == {}


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"x" * 50_000,
        b"GET /" + b"x" * 50_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"\r\n" * 25_000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: " + b"x" * 600_000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 600_000,
    ],
    ids=["endless header", "endless URL", "long header", "many headers", "blank lines", "trailers", "chunk extension"],
)
@pytest.mark.parametrize("step", [1000, 100_000])
async def test_an_endless_head_is_refused_and_the_connection_closed(head: bytes, step: int) -> None:
    async with street() as here:
        client = await here.client()
        for start in range(0, len(head), step):
            client.send(head[start : start + step])
            await client.writer.drain()
        answer = await client.answer()
        assert (answer.status, answer.slug, answer.closes) == (431, "head-too-large", True)
        assert await client.is_closed()
        assert metric(here, "connections_closed_total{reason=head-too-large}") == 1


@pytest.mark.parametrize(
    ("line", "headers", "is_read"),
    [
        (b"GET /health/live HTTP/1.1", b"", False),
        (b"GET /health/live HTTP/1.1", b"Host: a\r\nhost: a\r\n", False),
        (b"GET /health/live HTTP/1.1", b"Host:\r\n", True),
        (b"GET http://b/health/live HTTP/1.1", b"Host: a\r\n", True),
        (b"GET /health/live HTTP/1.0", b"", True),
        (b"GET /health/live HTTP/1.0", b"Host: a\r\nHost: b\r\n", False),
        (b"GET /health/live HTTP/2.0", b"Host: a\r\n", False),
        (b"GET /health/live", b"", False),
        (b"GET /health/live HTTP/1.1", b"Host: a\r\nTransfer-Encoding: Chunked \r\n", True),
        (b"GET /health/live HTTP/1.1", b"Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", False),
        (b"GET /health/live HTTP/1.1", b"Host: a\r\nTransfer-Encoding: chunked, gzip\r\n", False),
        (b"GET /health/live HTTP/1.0", b"Host: a\r\nTransfer-Encoding: chunked\r\n", False),
    ],
)
async def test_a_head_that_a_proxy_could_read_in_another_way_is_refused(
    line: bytes, headers: bytes, is_read: bool
) -> None:
    """RFC 9112, sections 3.2 and 6.1."""
    async with street() as here:
        client = await here.client()
        client.send(line + b"\r\n" + headers + b"\r\n" + (b"0\r\n\r\n" if b"Transfer" in headers else b""))
        answer = await client.answer()
        if is_read:
            assert answer.status == 200
        else:
            assert (answer.status, answer.slug, answer.closes) == (400, "malformed-request", True)


async def test_what_follows_a_body_in_chunks_is_no_header() -> None:
    async with street() as here:
        client = await here.client()
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(PICTURE) + PICTURE + b"\r\n0\r\n")
        client.send(b"Content-Encoding: nonsense\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_a_silent_connection_is_closed_and_half_a_head_is_answered() -> None:
    async with street(header_timeout_s=10) as here:
        silent, slow = await here.client(), await here.client()
        slow.send(b"GET /health/live HT")
        await until(lambda: any(each.scope for each in here.door.connections))
        here.pass_time(9)
        assert len(here.door.connections) == 2
        here.pass_time(2)
        assert await silent.is_closed()
        answer = await slow.answer()
        assert (answer.status, answer.slug, answer.closes) == (408, "request-too-slow", True)
        assert await slow.is_closed()


async def test_an_idle_connection_is_closed_after_its_time_and_a_next_head_has_its_own() -> None:
    async with street(header_timeout_s=5, idle_timeout_s=20) as here:
        client = await here.client()
        client.send(LIVE)
        await client.answer()
        here.pass_time(15)
        client.send(LIVE[:10])
        await until(lambda: here.connection.waits == "head")
        here.pass_time(4)
        client.send(LIVE[10:])
        assert (await client.answer()).status == 200
        here.pass_time(21)
        assert await client.is_closed()
        assert metric(here, "connections_closed_total{reason=idle}") == 1


async def test_a_body_that_stalls_is_given_up_with_all_it_held() -> None:
    async with street(stall_timeout_s=30) as here:
        client = await here.client()
        client.send(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(1000))
        await until(lambda: here.held == {"body": 1_000_000})
        here.pass_time(29)
        assert here.held == {"body": 1_000_000}
        here.pass_time(2)
        answer = await client.answer()
        assert (answer.status, answer.slug, answer.closes) == (408, "request-too-slow", True)
        assert await client.is_closed()
        await until(lambda: here.held == {})
        assert here.app.state.engine.admission.inside("images") == 0


async def test_a_slow_but_steady_sender_is_served() -> None:
    body = PICTURE + bytes(1_100_000)
    async with street(stall_timeout_s=30) as here:
        client = await here.client()
        client.send(POST + b"Content-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 300_000):
            sent = body[start : start + 300_000]
            client.send(sent)
            await until(lambda sent=sent: here.connection.moved == len(sent) or here.connection.waits == "answer")  # type: ignore[misc]
            here.pass_time(25)
        assert (await client.answer()).status == 200


async def test_forty_uploads_that_never_end_hold_no_more_than_the_budget() -> None:
    budget = 4_000_000
    async with street(memory_budget=budget, max_connections=100) as here:
        clients = [await here.client() for _ in range(40)]
        for client in clients:
            client.send(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(1000))
        for client in clients:
            client.send(bytes(1000))
        await until(lambda: sum(each.waits == "end" for each in here.door.connections) >= 37)
        assert 1_000_000 <= here.held["body"] <= budget
        other = await here.client()
        other.send(POST + b"Content-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE)
        assert (await other.answer()).status == 200
        refused = [client for client in clients if not client.reader.at_eof()]
        for client in refused:
            client.leave()
        await until(lambda: here.held == {})


async def test_chunks_that_never_end_are_bounded_by_the_budget_too() -> None:
    async with street(memory_budget=200_000) as here:
        client = await here.client()
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        client.send((b"8000\r\n" + bytes(0x8000) + b"\r\n") * 3)
        await until(lambda: here.held == {"body": 3 * 0x8000})
        for _ in range(8):
            client.send(b"8000\r\n" + bytes(0x8000) + b"\r\n")
        answer = await client.answer()
        assert (answer.status, answer.slug, answer.closes) == (413, "over-host-memory", True)
        await until(lambda: here.held == {})


async def test_a_body_in_pieces_of_a_byte_is_refused() -> None:
    async with street() as here:
        client = await here.client()
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000)
        answer = await client.answer()
        assert (answer.status, answer.slug) == (400, "malformed-request")


@pytest.mark.parametrize("expects", [True, False])
async def test_a_refused_body_is_refused_before_it_is_asked_for(expects: bool) -> None:
    async with street(max_body_bytes=1000) as here:
        client = await here.client()
        client.send(POST + b"Expect: 100-continue\r\n" * expects + b"Content-Length: 100000\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.slug, answer.closes) == (413, "body-too-large", True)


async def test_who_expects_it_is_told_to_go_on() -> None:
    async with street() as here:
        client = await here.client()
        client.send(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(PICTURE))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(PICTURE)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("path", [b"/embed", b"/nowhere", b"/health/live"])
async def test_the_rest_of_a_refused_body_is_dropped_for_a_while_and_the_answer_seen(path: bytes) -> None:
    async with street(max_body_bytes=1000) as here:
        client = await here.client()
        client.send(b"POST " + path + b" HTTP/1.1\r\nHost: here\r\nContent-Length: 5000000\r\n\r\n")
        for _ in range(20):
            client.send(bytes(50_000))
            await asyncio.sleep(0)
        answer = await client.answer()
        assert answer.status in (404, 405, 413)
        assert answer.closes
        await until(lambda: here.connection.waits == "end")
        assert not here.connection.cycle.body
        here.pass_time(3)
        await until(lambda: not here.door.connections)


async def test_an_answer_that_nobody_reads_is_given_up_and_its_memory_given_back() -> None:
    async with street(stall_timeout_s=30) as here:
        client = await here.client(buffer=8192)
        size = 4097 * 12 * 8  # bytes of the account for one image at 512 x 512
        client.send(form_post(b"/embed?resolution=512&format=safetensors", 60))
        await until(lambda: here.held.get("answer") == 60 * size and here.connection.flow.write_paused)
        here.pass_time(29)
        assert here.held["answer"] == 60 * size
        here.pass_time(3)
        await until(lambda: here.held == {} and not here.door.connections)
        assert metric(here, "connections_closed_total{reason=unread-answer}") == 1


async def test_a_slow_but_steady_reader_gets_all_of_a_large_answer() -> None:
    async with street(stall_timeout_s=30) as here:
        client = await here.client(buffer=8192)
        client.send(form_post(b"/embed?resolution=512&format=safetensors", 60))
        head = await client.reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert size > 60 * 4096 * 12 * 4
        while size:
            size -= len(await client.reader.readexactly(min(size, 2_000_000)))
            here.pass_time(20)
        await until(lambda: here.held == {})
        assert here.connection.waits == "request"


async def test_a_client_that_leaves_amid_an_answer_gives_its_memory_back() -> None:
    async with street() as here:
        client = await here.client(buffer=8192)
        client.send(form_post(b"/embed?resolution=512&format=raw", 60))
        await until(lambda: "answer" in here.held and here.connection.flow.write_paused)
        client.leave()
        await until(lambda: here.held == {} and not here.door.connections)


def form_post(target: bytes, images: int) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + PICTURE + b"\r\n"
    body = part * images + b"--x--\r\n"
    head = b"POST " + target + b" HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def test_beyond_the_limit_of_connections_only_health_and_metrics_are_answered() -> None:
    async with street(max_connections=2) as here:
        within = [await here.client(), await here.client()]
        beyond = await here.client()
        beyond.send(POST + b"Content-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE)
        answer = await beyond.answer()
        assert (answer.status, answer.slug, answer.closes) == (503, "too-many-connections", True)
        assert answer.headers["retry-after"] == "1"
        assert await beyond.is_closed()
        beyond.leave()
        await until(lambda: len(here.door.connections) == 2)
        for path in (b"/health/live", b"/health/ready", b"/metrics"):
            probe = await here.client()
            probe.send(b"GET " + path + b" HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = await probe.answer()
            assert (answer.status, answer.closes) == (200, True)
            probe.leave()
            await until(lambda: len(here.door.connections) == 2)
        within[0].send(LIVE)
        assert not (await within[0].answer()).closes
        within[1].leave()
        await until(lambda: len(here.door.connections) == 1)
        next_one = await here.client()
        next_one.send(LIVE)
        assert not (await next_one.answer()).closes
        assert metric(here, "rejected_total{reason=too-many-connections}") == 1


async def test_on_a_port_for_probes_the_limit_is_another() -> None:
    """Those of callers leave it open, and are not told of it."""
    async with street(is_for_probes=True, max_connections=1) as here:
        for _ in range(64):
            probe = await here.client()
            probe.send(LIVE)
            assert not (await probe.answer()).closes
        assert not here.door.is_full
        one_more = Client(*await asyncio.open_connection("127.0.0.1", here.port))
        answer = await one_more.answer()
        assert (answer.status, answer.slug, answer.closes) == (503, "too-many-connections", True)
        one_more.leave()
        assert metric(here, "connections") == 64


async def test_far_beyond_the_limit_a_connection_is_told_so_and_closed_at_once() -> None:
    async with street(max_connections=1) as here:
        for _ in range(65):
            await here.client()
        client = Client(*await asyncio.open_connection("127.0.0.1", here.port))
        answer = await client.answer()
        assert (answer.status, answer.closes) == (503, True)
        assert await client.is_closed()
        await until(lambda: len(here.door.connections) == 65)
        client.leave()


async def test_a_silent_connection_beyond_the_limit_has_little_time() -> None:
    async with street(max_connections=1, header_timeout_s=1000) as here:
        await here.client()
        beyond = await here.client()
        here.pass_time(3)
        assert await beyond.is_closed()


async def test_requests_sent_ahead_are_answered_in_order_and_only_so_many() -> None:
    async with street() as here:
        client = await here.client()
        client.send(LIVE + LIVE + b"GET /nowhere HTTP/1.1\r\nHost: here\r\n\r\n" + LIVE)
        assert [(await client.answer()).status for _ in range(4)] == [200, 200, 404, 200]
        client.send(LIVE * 50)
        assert (await client.answer()).status == 200
        assert await client.is_closed()


async def test_a_body_sent_ahead_of_its_turn_ends_the_connection_after_the_answer_before() -> None:
    gate = Gate()
    async with street(FakeEncoder(before=gate)) as here:
        gate.close()
        client = await here.client()
        request = POST + b"Content-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE
        client.send(request)
        await gate.someone_inside()
        client.send(request)
        await until(lambda: here.connection.waits == "last answer")
        gate.is_open.set()
        assert (await client.answer()).status == 200
        assert await client.is_closed()


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_what_is_not_http_is_a_problem(nonsense: bytes) -> None:
    async with street() as here:
        client = await here.client()
        client.send(nonsense)
        answer = await client.answer()
        assert (answer.status, answer.slug, answer.closes) == (400, "malformed-request", True)
        assert len(answer.body) < 2000


async def test_another_protocol_is_not_spoken() -> None:
    async with street() as here:
        client = await here.client()
        client.send(LIVE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
        answer = await client.answer()
        assert (answer.status, answer.closes) == (200, True)
        assert await client.is_closed()


@pytest.mark.parametrize("pieces", [1, 3, 1000])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_who_asks_for_another_protocol_is_answered_with_the_body_of_the_request(
    is_chunked: bool, pieces: int
) -> None:
    """As Java's client and `curl --http2` ask, in their first request."""
    image = image_bytes()
    framing, body = f"Content-Length: {len(image)}", image
    if is_chunked:
        framing, body = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(image), image)
    head = (
        "POST /embed HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        f"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Type: image/png\r\n{framing}\r\n\r\n"
    )
    request = head.encode() + body
    size = -(-len(request) // pieces)
    sent = [request[start : start + size] for start in range(0, len(request), size)]
    sent[-1] += b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    async with street() as here:
        client = await here.client()
        for piece in sent:
            client.send(piece)
            await asyncio.sleep(0)
        answer = await client.answer()
        assert (answer.status, answer.closes) == (200, True), answer.body
        assert await client.is_closed()


async def test_the_body_of_who_asks_for_another_protocol_has_the_same_limits() -> None:
    head = (
        b"POST /embed HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for body in (b"1\r\nx\r\n" * 6000, b"nonsense\r\n"):
        async with street() as here:
            client = await here.client()
            client.send(head + body)
            answer = await client.answer()
            assert (answer.status, answer.slug, answer.closes) == (400, "malformed-request", True)


async def test_the_door_looks_by_itself_while_somebody_is_there() -> None:
    async with street() as here:
        client = await here.client()
        looked = asyncio.Event()

        class Ended(Clock):
            def __call__(self) -> float:
                looked.set()
                return 1e9

        here.door.clock = Ended()
        await asyncio.wait_for(looked.wait(), 30)
        assert await client.is_closed()
