"""A minimal HTTP/1.1 client: prepared requests over connections that are kept. Costs tens of microseconds a request."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import httptools


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


class Answer(NamedTuple):
    """Status and body."""

    status: int
    body: bytes


def post(
    address: Address, path: str, content: bytes, *, content_type: str, headers: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """The bytes of a request. headers: beside those that every request has."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nAccept: application/json\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
    )
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}{more}\r\n".encode() + content


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._begin()

    @classmethod
    async def open(cls, address: Address) -> "Connection":
        """Raises OSError if nothing listens there."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, address.host, address.port)
        return connection

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Send a request of `post` and wait for its answer. Raises ConnectionError if the server hangs up before."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """As asyncio.Protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ConnectionError(str(error)))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio.Protocol."""
        self._end(ConnectionResetError())

    # What httptools calls.

    def on_body(self, body: bytes) -> None:
        """As httptools."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """As httptools."""
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(Answer(self._parser.get_status_code(), b"".join(self._body)))
        if self._parser.should_keep_alive():
            self._begin()
        else:
            self.close()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    def _end(self, error: ConnectionError) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)
