"""Requests over HTTP, tried again where that may help."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

import httpx

from visiontower_client.errors import Overloaded, ServerFailed, TimedOut, Unreachable, VisiontowerError, of_response
from visiontower_client.form import Body

MOST_BYTES = 2**30
"""Of one answer, unless the caller says otherwise."""
_READ_HEADERS = (b"content-type", b"retry-after", b"location")
_WRONG = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What an answer of another form than the server's brings about where it is read."""
_CONNECT_S = 10.0
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 8.0
_TRY = 4
"""Times `timeout`: how long a try lasts, if the server is never silent for as long as that."""
_MOST_ERROR_BYTES = 65_536
"""Of an answer that is no success; the rest is not read."""
_PATIENCE_S = 60.0
"""A server that says Retry-After a longer time gets no second try: the caller is told instead."""
_SHOWN = 200
"""Characters of what is wrong that an error shows."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

try:
    _AGENT = f"visiontower-client/{version('visiontower-client')}"
except PackageNotFoundError:  # run from its source
    _AGENT = "visiontower-client"


class Wire:
    """One server. slots: so many requests may be prepared or under way at once, each over a connection that is kept.

    timeout: seconds that the server may be silent; a try may last four times as long. max_answer_bytes: of one answer,
    once it is inflated. retries: after the first try, of what is answered 429, 502 or 503 or not at all; and
    500 without a problem of the service, by a gateway that has lost the request: nothing is changed by asking again.
    The wait is 0.25 s and twice as long each time up to 8 s, or what Retry-After says if that is longer; and up to a
    quarter more at random, so that clients that were refused together do not come back together.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout: float,
        in_flight: int,
        retries: int,
        transport: httpx.AsyncBaseTransport | None,
        max_answer_bytes: int = MOST_BYTES,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        host = _host(url)
        if api_key and not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key is a str of visible ASCII characters. Is there a line break at its end?")
        if in_flight < 1 or retries < 0 or not timeout > 0 or max_answer_bytes < 1:
            raise ValueError(
                "in_flight and max_answer_bytes are at least 1, retries at least 0, and timeout more than 0 seconds."
            )
        self.slots = asyncio.Semaphore(in_flight)
        self._url = url.rstrip("/")
        self._retries = retries
        self._timeout_s = timeout
        self._most_bytes = max_answer_bytes
        self._sleep = sleep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http = httpx.AsyncClient(
            headers={"User-Agent": _AGENT} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=httpx.Timeout(timeout, connect=min(_CONNECT_S, timeout), pool=None),
            limits=httpx.Limits(max_connections=in_flight + 1, max_keepalive_connections=in_flight + 1),
            transport=transport,
            trust_env=host not in _LOOPBACK,  # a proxy has no business between a machine and itself
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """The JSON at a path. Raises VisiontowerError."""
        async with self.slots:
            return json_of(await self._tried(self._request("GET", path)))

    async def post(self, path: str, body: Body, *, accept: str = "application/json") -> httpx.Response:
        """The answer of a request for which the caller holds a slot. Raises VisiontowerError."""
        return await self._tried(self._request("POST", path, body=body, accept=accept))

    async def once(self, path: str) -> httpx.Response:
        """What a path answers now, whatever its status. Raises Unreachable or TimedOut."""
        return await self._sent(self._request("GET", path))

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        accept: str = "application/json",
    ) -> httpx.Request:
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = body.content_type
        content = None if body is None else body.content
        return self._http.build_request(method, self._url + path, content=content, headers=headers)

    async def _tried(self, request: httpx.Request) -> httpx.Response:
        for tries in range(self._retries + 1):
            try:
                response = await self._sent(request)
                if response.is_success:
                    return response
                raise of_response(response)
            except (Overloaded, Unreachable) as error:
                wait = _wait_s(error, tries)
                if tries == self._retries or wait is None:
                    raise
            await self._sleep(wait)
        raise AssertionError("the last try answers or raises")

    async def _sent(self, request: httpx.Request) -> httpx.Response:
        self._loop = self._loop or asyncio.get_running_loop()
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError("This client was used in another event loop: make an AsyncClient in each asyncio.run.")
        try:
            async with asyncio.timeout(_TRY * self._timeout_s):
                response = await self._http.send(request, stream=True)
                try:
                    return await self._read(response)
                finally:
                    await response.aclose()
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise TimedOut(f"{self._url} has not answered within {self._timeout_s:g} s.") from error
        except TimeoutError as error:
            raise TimedOut(f"{self._url} has not answered to the end within {_TRY * self._timeout_s:g} s.") from error
        except httpx.TransportError as error:
            said = str(error) or type(error).__name__
            raise Unreachable(
                f"{self._url} cannot be reached: {said}. Is `visiontower serve` running there?"
            ) from error
        except httpx.RequestError as error:
            raise ServerFailed(f"{self._url} has answered what cannot be read: {error}.") from error

    async def _read(self, response: httpx.Response) -> httpx.Response:
        """The answer with its content; of an error the beginning. Raises ServerFailed for one that is too large."""
        most = self._most_bytes if response.is_success else _MOST_ERROR_BYTES
        pieces, size = [], 0
        async for piece in response.aiter_bytes():
            pieces.append(piece[: most - size])
            size += len(piece)
            if size > most:
                if response.is_success:
                    raise unexpected(
                        response,
                        f"it has over {most:,} bytes. Ask for less in one request (batch), or raise max_answer_bytes",
                    )
                break
        headers = [(name, value) for name, value in response.headers.raw if name.lower() in _READ_HEADERS]
        return httpx.Response(response.status_code, headers=headers, content=b"".join(pieces), request=response.request)


def _host(url: str) -> str:
    """Of a server's address. Raises ValueError for anything else."""
    try:
        address, port = httpx.URL(url), urlsplit(url).port
    except (httpx.InvalidURL, ValueError, TypeError):
        address, port = httpx.URL(), None
    if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment or port == 0:
        raise ValueError(f"The server's address is like http://127.0.0.1:8000, and not {url!r}.")
    return address.host


def _wait_s(error: VisiontowerError, tries: int) -> float | None:
    """Before the next try; None for none."""
    asked = error.retry_after_s if isinstance(error, Overloaded) else None
    if asked is not None and asked > _PATIENCE_S:
        return None
    own: float = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**tries)
    return max(own, asked or 0.0) * random.uniform(1.0, 1.25)


def json_of(response: httpx.Response) -> Any:
    """The JSON object of an answer. Raises ServerFailed for anything else."""
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise unexpected(response, "it is no JSON object")
    return answer


@contextmanager
def reading(response: httpx.Response) -> Iterator[None]:
    """Whatever is wrong with the answer that is read in the block is a ServerFailed."""
    try:
        yield
    except _WRONG as error:
        raise unexpected(response, str(error)[:_SHOWN] or type(error).__name__) from error


def unexpected(response: httpx.Response, why: str) -> ServerFailed:
    """For an answer that is not one of visiontower."""
    kind = response.headers.get("content-type", "no Content-Type")
    return ServerFailed(
        f"{response.url.path} has answered something else than visiontower does ({kind}): {why}.",
        status=response.status_code,
    )
