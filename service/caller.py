"""Whose request is being worked on, as far as a server without access keys can tell. For turns, not for trust."""

from contextvars import ContextVar

CALLER: ContextVar[str | None] = ContextVar("CALLER", default=None)
"""The address of the client's connection; None in process. Of all clients behind a proxy it is the proxy's."""
