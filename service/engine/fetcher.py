"""Image URL -> bytes, for hosts the operator has listed. Knows HTTP; knows no image format.

A server that fetches what strangers name can be used against its own network, so: only listed hosts and ports, http(s)
only, no redirects, no proxy, no private address unless the operator listed that very address; and the connection goes
to the address that was checked, so that a second look-up cannot give another one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import httpx
from opentelemetry.trace import get_current_span

from service.engine.look_ups import LookUps
from service.errors import ImageFetchFailed, ImageUrlRefused, Overloaded, shown
from service.hosts import HostRule, address_of, is_name, is_public, usual_port
from service.memory.account import Account, Hold
from service.telemetry.tracing import propagator

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""Host and port -> its addresses. Raises OSError, or ValueError for a name that is none."""
_PIECES, _PIECE_BYTES = 1000, 64
"""A body may come in so many pieces of any size; with more of them, they have on average at least so many bytes."""


class Fetcher:
    """Fetches images by URL. No hosts: every URL is refused.

    hosts: as of the setting image_url_hosts. max_bytes: of one image; max_sum_bytes: of a request's images together.
    max_urls: of all requests together. account: holds the bytes.
    """

    def __init__(
        self,
        *,
        hosts: Sequence[str],
        max_bytes: int,
        max_sum_bytes: int,
        max_urls: int,
        timeout_s: float,
        account: Account,
        resolve: Resolve | None = None,
    ) -> None:
        self._rules = [HostRule.parse(host) for host in hosts]
        self._max_bytes = max_bytes
        self._max_sum_bytes = max_sum_bytes
        self._max_urls = max_urls
        self._timeout_s = timeout_s
        self._account = account
        self._resolve = resolve or LookUps()
        self._urls = 0
        self._client = (
            httpx.AsyncClient(
                follow_redirects=False,
                trust_env=False,
                timeout=timeout_s,
                # A connection is kept by its address, and would serve a second name whose certificate nobody has seen.
                limits=httpx.Limits(max_connections=max_urls, max_keepalive_connections=0),
            )
            if hosts
            else None
        )

    async def close(self) -> None:
        """Close connections."""
        if self._client is not None:
            await self._client.aclose()

    @contextmanager
    def request(self, urls: int) -> Iterator[Hold]:
        """The bytes that one request with so many URLs fetches; given back at the end of the `with`. Raises Overloaded.

        Who waits for hosts elsewhere takes only a part of the places of those who send their images.
        """
        if self._urls + urls > self._max_urls:
            raise Overloaded(what="image URLs", waiting=self._urls, limit=self._max_urls, retry_after_s=1)
        self._urls += urls
        try:
            with self._account.hold("body") as fetched:
                yield fetched
        finally:
            self._urls -= urls

    async def fetch(self, url: str, fetched: Hold) -> bytes:
        """The body behind the URL; `fetched` holds its bytes.

        Raises ImageUrlRefused, ImageFetchFailed, HostMemoryFull or OverHostMemory.
        """
        parsed = self._allowed(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._get(url, parsed, fetched)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise ImageFetchFailed(url, reason=f"no answer within {self._timeout_s:g} s") from error
        except (httpx.HTTPError, httpx.StreamError, OSError, ValueError) as error:  # the latter: a name that is none
            raise ImageFetchFailed(url, reason=f"the connection failed ({type(error).__name__})") from error

    def _allowed(self, url: str) -> httpx.URL:
        if self._client is None:
            raise ImageUrlRefused(url, reason="this server fetches no URLs (setting image_url_hosts)")
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError) as error:
            raise ImageUrlRefused(url, reason="it is not a valid URL") from error
        host, port = _host(parsed), _port(parsed)
        if parsed.scheme not in ("http", "https") or not host or parsed.userinfo:
            raise ImageUrlRefused(url, reason="only plain http and https URLs are fetched")
        if not 0 < port < 65_536:
            raise ImageUrlRefused(url, reason=f"there is no port {port}")
        if address_of(host) is None and not is_name(host):
            raise ImageUrlRefused(url, reason=f"{shown(host)} is no host's name")
        rules = [rule for rule in self._rules if rule.allows(host)]
        if not rules:
            raise ImageUrlRefused(url, reason=f"the host {host} is not in the setting image_url_hosts")
        if not any(rule.allows_port(parsed.scheme, port) for rule in rules):
            raise ImageUrlRefused(url, reason=f"the port {port} of {host} is not in the setting image_url_hosts")
        return parsed

    async def _get(self, url: str, parsed: httpx.URL, fetched: Hold) -> bytes:
        assert self._client is not None, "_allowed has refused"
        address = await self._address(url, parsed)
        of_trace: dict[str, str] = {}
        if get_current_span().get_span_context().is_valid:
            propagator().inject(of_trace)
        request = self._client.build_request(
            "GET",
            parsed.copy_with(host=address),
            headers={
                **of_trace,
                "Host": parsed.netloc.decode(),
                "Accept": "image/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
            },
            extensions={"sni_hostname": _host(parsed)},
        )
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code != 200:
                redirects = ", and redirects are not followed" if response.is_redirect else ""
                raise ImageFetchFailed(url, reason=f"it answered {response.status_code}{redirects}")
            encoding = response.headers.get("content-encoding", "").strip().lower()
            if encoding not in ("", "identity"):
                reason = f"it is compressed ({shown(encoding)}), and was asked for as it is"
                raise ImageFetchFailed(url, reason=reason)
            return await self._body(url, response, fetched)
        finally:
            await response.aclose()

    async def _body(self, url: str, response: httpx.Response, fetched: Hold) -> bytes:
        """The bytes are held before they are read if their number is announced, else as they come."""
        expected = int(response.headers.get("content-length", 0))
        self._hold(url, fetched, expected, size=expected)
        received = bytearray()  # no list: a piece may be one byte
        pieces = 0
        async for piece in response.aiter_raw():
            received += piece
            pieces += 1
            if len(received) > expected:
                self._hold(url, fetched, len(received) - expected, size=len(received))
                expected = len(received)
            if pieces > _PIECES and pieces * _PIECE_BYTES > len(received):  # each is work on the event loop
                raise ImageFetchFailed(url, reason=f"it comes in pieces of under {_PIECE_BYTES} bytes")
        return bytes(received)

    def _hold(self, url: str, fetched: Hold, more: int, *, size: int) -> None:
        if size > self._max_bytes:
            raise ImageFetchFailed(url, reason=f"it is over {self._max_bytes:,} bytes")
        if fetched.nbytes + more > self._max_sum_bytes:
            reason = f"the images fetched for this request are over {self._max_sum_bytes:,} bytes together"
            raise ImageFetchFailed(url, reason=reason)
        fetched.grow(more)

    async def _address(self, url: str, parsed: httpx.URL) -> str:
        """Where to connect: checked here, and used as checked."""
        host = _host(parsed)
        if address_of(host) is not None:  # listed as such, or _allowed would have refused
            return host
        addresses = [address_of(address) for address in await self._resolve(host, _port(parsed))]
        if not addresses or any(address is None or not is_public(address) for address in addresses):
            raise ImageUrlRefused(url, reason=f"the host {host} has a private address")
        return str(addresses[0])


def _host(url: httpx.URL) -> str:
    """A name in ASCII and lower case, or an address in its usual spelling."""
    host = url.raw_host.decode("ascii").lower()
    return str(address_of(host) or host)


def _port(url: httpx.URL) -> int:
    return usual_port(url.scheme) if url.port is None else url.port
