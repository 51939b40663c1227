"""Whose request is being worked on. For turns, not for trust."""

from contextvars import ContextVar

CALLER: ContextVar[str | None] = ContextVar("CALLER", default=None)
"""The name of the access key, without keys the address of the connection; None in process.

Of all clients behind a proxy the address is the proxy's.
"""
