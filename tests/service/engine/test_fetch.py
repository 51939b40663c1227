"""Images by URL: what is fetched and what is refused, against a little server on the loopback address."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.engine.fetcher import Fetcher
from service.errors import ImageFetchFailed, ImageUrlRefused
from tests.support.serving import image_bytes, serving

pytestmark = pytest.mark.anyio
PICTURE = image_bytes()
REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@asynccontextmanager
async def web(response: bytes | None) -> AsyncIterator[str]:
    """A server that gives this response to every request, or none at all; gives its URL. The system picks the port."""
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if response is None:
            await gone.wait()
        else:
            writer.write(response)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/cat.png"
    finally:
        gone.set()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def fetching(
    *hosts: str, max_bytes: int = 10_000, timeout_s: float = 30, addresses: tuple[str, ...] = ()
) -> AsyncIterator[Fetcher]:
    async def resolve(host: str, port: int) -> list[str]:
        if not addresses:
            raise OSError("no such host")
        return list(addresses)

    fetcher = Fetcher(hosts=hosts, max_bytes=max_bytes, timeout_s=timeout_s, resolve=resolve)
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def test_a_listed_address_is_fetched() -> None:
    async with web(answer(PICTURE)) as url, fetching("127.0.0.1") as fetcher:
        assert await fetcher.fetch(url) == PICTURE


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
    ],
)
async def test_other_urls_are_refused(url: str, hosts: tuple[str, ...]) -> None:
    async with fetching(*hosts, addresses=("93.184.216.34",)) as fetcher:
        with pytest.raises(ImageUrlRefused):
            await fetcher.fetch(url)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5", "169.254.169.254", "::1", "fd00::1", "192.168.1.1"])
async def test_a_listed_name_with_a_private_address_is_refused(address: str) -> None:
    async with fetching("*.example.com", addresses=("93.184.216.34", address)) as fetcher:
        with pytest.raises(ImageUrlRefused, match="private address"):
            await fetcher.fetch("http://img.example.com/x.png")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (REDIRECT, "answered 302"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (answer(b"x" * 10_001), "over 10,000 bytes"),
        (b"not http at all\r\n\r\n", "connection failed"),
    ],
    ids=["redirect", "not found", "too large", "no HTTP"],
)
async def test_what_gives_no_image_is_a_failure(response: bytes, reason: str) -> None:
    async with web(response) as url, fetching("127.0.0.1") as fetcher:
        with pytest.raises(ImageFetchFailed, match=reason):
            await fetcher.fetch(url)


async def test_a_silent_server_is_not_waited_for() -> None:
    async with web(None) as url, fetching("127.0.0.1", timeout_s=0.05) as fetcher:
        with pytest.raises(ImageFetchFailed, match=r"no answer within 0\.05 s"):
            await fetcher.fetch(url)


async def test_a_name_that_does_not_resolve_is_a_failure() -> None:
    async with fetching("img.example.com") as fetcher:
        with pytest.raises(ImageFetchFailed):
            await fetcher.fetch("http://img.example.com/x.png")


@pytest.mark.parametrize("name", ["a" * 64, "a."])
async def test_a_name_that_cannot_be_one_is_a_failure(name: str) -> None:
    """By the system's resolver, which asks nobody about it."""
    fetcher = Fetcher(hosts=["*.example.com"], max_bytes=10, timeout_s=30)
    with pytest.raises(ImageFetchFailed):
        await fetcher.fetch(f"http://{name}.example.com/x.png")
    await fetcher.close()


async def test_the_service_embeds_by_url_and_counts_the_fetch() -> None:
    async with web(answer(PICTURE)) as url, serving(image_url_hosts=("127.0.0.1",)) as client:
        response = await client.post("/embed", json={"images": [url, "http://elsewhere/x"], "output": "pooled"})
        metrics = (await client.get("/metrics")).text
    first, second = response.json()["data"]
    assert "pooled" in first
    assert second["error"]["type"] == "/problems/image-url-refused"
    assert response.json()["timing_ms"]["fetch"] > 0
    assert 'visiontower_stage_seconds_count{model="fake:vit",stage="fetch"} 1.0' in metrics
