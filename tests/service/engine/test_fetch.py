"""Images by URL: what is fetched and what is refused, against a little server on the loopback address."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest

from service.engine.fetcher import Fetcher
from service.engine.look_ups import LookUps
from service.errors import HostMemoryFull, ImageFetchFailed, ImageUrlRefused, Overloaded
from service.memory.account import Account
from tests.support.serving import PNG, assert_problem, image_bytes, serving

pytestmark = pytest.mark.anyio
PICTURE = image_bytes()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@asynccontextmanager
async def web(response: bytes | None) -> AsyncIterator[str]:
    """A server that gives this response to every request, or none at all; gives its URL. The system picks the port."""
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, EOFError):  # the fetcher has gone
            await reader.readuntil(b"\r\n\r\n")
            if response is None:
                await gone.wait()
            else:
                writer.write(response)
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/cat.png"
    finally:
        gone.set()
        server.close()
        await server.wait_closed()


def host_of(url: str) -> str:
    """Host and port, as an operator lists them."""
    return url.split("/")[2]


@asynccontextmanager
async def fetching(
    *hosts: str, addresses: tuple[str, ...] = (), account: Account | None = None, **limits: Any
) -> AsyncIterator[Fetcher]:
    async def resolve(host: str, port: int) -> list[str]:
        if not addresses:
            raise OSError("no such host")
        return list(addresses)

    options = {"max_bytes": 10_000, "max_sum_bytes": 100_000, "max_urls": 10, "timeout_s": 30} | limits
    fetcher = Fetcher(hosts=hosts, account=account or Account(10**9), resolve=resolve, **options)
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def fetched(fetcher: Fetcher, url: str) -> bytes:
    """By a request of this URL alone."""
    with fetcher.request(1) as held:
        return await fetcher.fetch(url, held)


async def test_a_listed_address_is_fetched() -> None:
    async with web(answer(PICTURE)) as url, fetching(host_of(url)) as fetcher:
        assert await fetched(fetcher, url) == PICTURE


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("http://example.com/x", ()),
        ("http://example.com/x", ("example.org",)),
        ("http://example.com.evil.org/x", ("example.com",)),
        ("http://notexample.com/x", ("*.example.com",)),
        ("http://user:password@example.com/x", ("example.com",)),
        ("ftp://example.com/x", ("example.com",)),
        ("http://[broken/x", ("example.com",)),
        ("http:///x", ("example.com",)),
        ("http://127.0.0.1/x", ("localhost",)),
        ("http://xn--a/x", ("example.com",)),
        ("http://example.com:99999/x", ("example.com",)),
        ("http://example.com:-1/x", ("example.com",)),
        ("http://example.com:0/x", ("example.com",)),
        ("http://example.com:" + "9" * 5000, ("example.com",)),
        ("http://example.com:8080/x", ("example.com",)),
        ("http://example.com:22/x", ("example.com",)),
        ("http://example.com:443/x", ("example.com",)),
        ("https://example.com:80/x", ("example.com",)),
        ("http://example.com/x", ("example.com:8080",)),
        ("http://a.example.com:8081/x", ("*.example.com:8080",)),
        ("http://example.com./x", ("example.com",)),
        ("http://.example.com/x", ("*.example.com",)),
        ("http://a..example.com/x", ("*.example.com",)),
        ("http://exa%6Dple.com/x", ("example.com",)),
        ("http://example.com\\@127.0.0.1/x", ("example.com",)),
        ("http://example.com%00.evil.org/x", ("example.com",)),
        ("http://\ud800.example.com/x", ("*.example.com",)),
        ("http://example.com/" + "x" * 70_000, ("example.com",)),
    ],
)
async def test_other_urls_are_refused(url: str, hosts: tuple[str, ...]) -> None:
    async with fetching(*hosts, addresses=("93.184.216.34",)) as fetcher:
        with pytest.raises(ImageUrlRefused):
            await fetched(fetcher, url)


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "fe80::1%1", "no address"])
async def test_a_listed_name_with_a_private_address_is_refused(address: str) -> None:
    async with fetching("*.example.com", addresses=("93.184.216.34", address)) as fetcher:
        with pytest.raises(ImageUrlRefused, match="private address"):
            await fetched(fetcher, "http://img.example.com/x.png")


@pytest.mark.parametrize(
    "spelling",
    [
        "127.1",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "0x7f000001",
        "2130706433",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "\uff11\uff12\uff17.0.0.1",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[::1%25lo]",
        "127.0.0.1%00",
    ],
)
async def test_a_listed_address_is_fetched_in_no_other_spelling(spelling: str) -> None:
    async with fetching("127.0.0.1", "localhost", addresses=("93.184.216.34",)) as fetcher:
        with pytest.raises(ImageUrlRefused):
            await fetched(fetcher, f"http://{spelling}/x")


async def test_a_name_beyond_ascii_is_its_punycode() -> None:
    async with fetching("xn--bcher-kva.example", addresses=("10.0.0.1",)) as fetcher:
        for host in ("bücher.example", "xn--bcher-kva.example", "BÜCHER.example"):
            with pytest.raises(ImageUrlRefused, match=r"xn--bcher-kva\.example has a private address"):
                await fetched(fetcher, f"http://{host}/x")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (REDIRECT, "answered 302, and redirects are not followed"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (answer(b"x" * 10_001), "over 10,000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10001\r\n\r\n", "over 10,000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", "connection failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "connection failed"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_001, "over 10,000 bytes"),
        (CHUNKED + b"2711\r\n" + b"x" * 10_001, "over 10,000 bytes"),
        (CHUNKED + b"1\r\nx\r\n" * 5000, "pieces of under 64 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: GZIP\r\nContent-Length: 5\r\n\r\nxxxxx", r"compressed \(gzip\)"),
        (b"not http at all\r\n\r\n", "connection failed"),
        (b"HTTP/1.1 200 OK\r\nX-Endless: " + b"x" * 1_000_000, "connection failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut", "connection failed"),
    ],
    ids=[
        "redirect",
        "not found",
        "too large",
        "too large if it came",
        "absurd length",
        "negative length",
        "too large unannounced",
        "too large in chunks",
        "in tiny chunks",
        "compressed",
        "no HTTP",
        "endless header",
        "cut",
    ],
)
async def test_what_gives_no_image_is_a_failure(response: bytes, reason: str) -> None:
    async with web(response) as url, fetching(host_of(url)) as fetcher:
        with pytest.raises(ImageFetchFailed, match=reason):
            await fetched(fetcher, url)


async def test_a_silent_server_is_not_waited_for() -> None:
    async with web(None) as url, fetching(host_of(url), timeout_s=0.05) as fetcher:
        with pytest.raises(ImageFetchFailed, match=r"no answer within 0\.05 s"):
            await fetched(fetcher, url)


async def test_a_name_that_does_not_resolve_is_a_failure() -> None:
    async with fetching("img.example.com") as fetcher:
        with pytest.raises(ImageFetchFailed):
            await fetched(fetcher, "http://img.example.com/x.png")


@contextmanager
def resolver(answer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system's resolver, asked by nobody else meanwhile."""

    def getaddrinfo(host: str, port: int, **rest: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer(host), port))]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


async def test_a_name_that_cannot_be_one_is_a_failure_of_its_look_up() -> None:
    """By the system's resolver, which asks nobody about it."""
    with pytest.raises(UnicodeError):
        await LookUps()("a" * 64 + ".example.com", 80)


async def test_a_resolver_that_does_not_answer_holds_its_few_threads_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go, asked = threading.Event(), threading.Semaphore(0)

    def answer(host: str) -> str:
        asked.release()
        assert let_go.wait(30)
        return "93.184.216.34"

    with resolver(answer, monkeypatch):
        look_ups = LookUps()
        waiting = [asyncio.create_task(look_ups(f"{number}.example.com", 80)) for number in range(100)]
        for _ in range(16):
            await asyncio.to_thread(asked.acquire)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert not asked.acquire(blocking=False)
        let_go.set()
        assert await look_ups("example.com", 80) == ["93.184.216.34"]
        assert asked.acquire(blocking=False)
        assert not asked.acquire(blocking=False)


async def test_fetched_bytes_are_held_until_the_request_ends() -> None:
    account = Account(10**6)
    async with web(answer(b"x" * 5000)) as url, fetching(host_of(url), account=account) as fetcher:
        with fetcher.request(2) as held:
            await fetcher.fetch(url, held)
            await fetcher.fetch(url, held)
            assert account.held["body"] == 10_000
        assert account.held["body"] == 0


@pytest.mark.parametrize("response", [answer(b"x" * 5000), CHUNKED + b"1388\r\n" + b"x" * 5000 + b"\r\n0\r\n\r\n"])
async def test_a_request_fetches_no_more_than_its_share_of_memory(response: bytes) -> None:
    account = Account(40_000)
    account.hold("image", 34_000)
    async with web(response) as url, fetching(host_of(url), account=account) as fetcher:
        with pytest.raises(HostMemoryFull):
            await fetched(fetcher, url)
    assert account.held["body"] == 0


async def test_a_request_fetches_no_more_bytes_than_a_body_may_have() -> None:
    async with web(answer(b"x" * 5000)) as url, fetching(host_of(url), max_sum_bytes=12_000) as fetcher:
        with fetcher.request(3) as held:
            await fetcher.fetch(url, held)
            await fetcher.fetch(url, held)
            with pytest.raises(ImageFetchFailed, match="over 12,000 bytes together"):
                await fetcher.fetch(url, held)
        assert await fetched(fetcher, url)


async def test_urls_of_all_requests_are_bounded() -> None:
    async with fetching("example.com", max_urls=5) as fetcher:
        with fetcher.request(4):
            with pytest.raises(Overloaded) as full:
                fetcher.request(2).__enter__()
            assert (full.value.facts["waiting"], full.value.facts["limit"]) == (4, 5)
        with fetcher.request(5):
            pass


async def test_those_who_wait_for_urls_leave_room_for_images() -> None:
    async with web(None) as url, serving(image_url_hosts=(host_of(url),), max_images=4, queue_images=10) as client:
        slow = [asyncio.create_task(client.post("/embed", json={"images": [url]})) for _ in range(5)]
        refused, *_ = await asyncio.gather(client.post("/embed", json={"images": [url]}))
        assert_problem(refused, 503, "overloaded")
        assert (await client.post("/embed", content=PICTURE, headers=PNG)).status_code == 200
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)


async def test_the_service_embeds_by_url_and_counts_the_fetch() -> None:
    async with web(answer(PICTURE)) as url, serving(image_url_hosts=(host_of(url),)) as client:
        response = await client.post("/embed", json={"images": [url, "http://elsewhere/x"], "output": "pooled"})
        metrics = (await client.get("/metrics")).text
    first, second = response.json()["data"]
    assert "pooled" in first
    assert second["error"]["type"] == "/problems/image-url-refused"
    assert response.json()["timing_ms"]["fetch"] > 0
    assert 'visiontower_stage_seconds_count{model="fake:vit",stage="fetch"} 1.0' in metrics
