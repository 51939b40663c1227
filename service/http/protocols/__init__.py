"""Wire protocols, side by side: each turns bodies into the engine's requests, and its results into bytes."""

from service.http.protocol import Protocol
from service.http.protocols import native

PROTOCOLS: tuple[Protocol, ...] = (native.PROTOCOL,)
"""The protocols that are served. A new one is a file or folder here, and a place in this table."""
