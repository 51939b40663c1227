"""Wire protocols, side by side: each turns bodies into the engine's requests, and its results into bytes."""

from collections.abc import Mapping

from service.http.protocol import Protocol
from service.http.protocols import cohere, native, openai
from service.settings import ProtocolName

PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    "native": native.PROTOCOL,
    "openai": openai.PROTOCOL,
    "cohere": cohere.PROTOCOL,
}
"""The protocols that can be served, by name. A new one is a file or folder here, and a place in this table."""
