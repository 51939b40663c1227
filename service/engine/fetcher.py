"""Image URL -> bytes, for hosts the operator has listed. Knows HTTP; knows no image format.

A server that fetches what strangers name can be used against its own network, so: only listed hosts, http(s) only, no
redirects, no proxy, no private address unless the operator listed that very address; and the connection goes to the
address that was checked, so that a second look-up cannot give another one.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import httpx

from service.errors import ImageFetchFailed, ImageUrlRefused

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""Host and port -> its addresses. Raises OSError."""


async def look_up(host: str, port: int) -> list[str]:
    """Addresses of the host, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Fetcher:
    """Fetches images by URL. No hosts: every URL is refused."""

    def __init__(self, *, hosts: Sequence[str], max_bytes: int, timeout_s: float, resolve: Resolve = look_up) -> None:
        self._hosts = [host.lower() for host in hosts]
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=timeout_s) if hosts else None

    async def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            await self._client.aclose()

    async def fetch(self, url: str) -> bytes:
        """The body behind the URL. Raises ImageUrlRefused or ImageFetchFailed."""
        parsed = self._allowed(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._get(url, parsed)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise ImageFetchFailed(url, reason=f"no answer within {self._timeout_s:g} s") from error
        except (httpx.HTTPError, OSError, UnicodeError) as error:  # the latter from a name that is none
            raise ImageFetchFailed(url, reason=f"the connection failed ({type(error).__name__})") from error

    def _allowed(self, url: str) -> httpx.URL:
        if self._client is None:
            raise ImageUrlRefused(url, reason="this server fetches no URLs (setting image_url_hosts)")
        try:
            parsed = httpx.URL(url)
            host = parsed.host.lower()
        except (httpx.InvalidURL, UnicodeError) as error:  # the latter from a name that IDNA cannot decode
            raise ImageUrlRefused(url, reason="it is not a valid URL") from error
        if parsed.scheme not in ("http", "https") or not host or parsed.userinfo:
            raise ImageUrlRefused(url, reason="only plain http and https URLs are fetched")
        if parsed.port is not None and not 0 < parsed.port < 65_536:
            raise ImageUrlRefused(url, reason=f"there is no port {parsed.port}")
        if not any(host == allowed or (allowed[:2] == "*." and host.endswith(allowed[1:])) for allowed in self._hosts):
            raise ImageUrlRefused(url, reason=f"the host {host} is not in the setting image_url_hosts")
        return parsed

    async def _get(self, url: str, parsed: httpx.URL) -> bytes:
        assert self._client is not None, "_allowed has refused"
        address = await self._address(url, parsed)
        request = self._client.build_request(
            "GET",
            parsed.copy_with(host=address),
            headers={"Host": parsed.netloc.decode(), "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": parsed.host},
        )
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code != 200:
                raise ImageFetchFailed(url, reason=f"it answered {response.status_code}")
            received = bytearray()
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > self._max_bytes:
                    raise ImageFetchFailed(url, reason=f"it is over {self._max_bytes:,} bytes")
            return bytes(received)
        finally:
            await response.aclose()

    async def _address(self, url: str, parsed: httpx.URL) -> str:
        """Where to connect: checked here, and used as checked."""
        host = parsed.host.lower()
        if _is_address(host):  # listed as such, or _allowed would have refused
            return host
        addresses = await self._resolve(host, parsed.port or (443 if parsed.scheme == "https" else 80))
        if not addresses or not all(ipaddress.ip_address(address).is_global for address in addresses):
            raise ImageUrlRefused(url, reason=f"the host {host} has a private address")
        return addresses[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
