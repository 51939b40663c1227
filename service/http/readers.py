"""Where large bodies are inflated and taken apart: on two threads, the cheap ones first.

A cheap body never waits for a dear one, and nobody waits for a body whose sender has left.
"""

from collections.abc import Callable
from typing import TypeVar

from service.line import Line

R = TypeVar("R")
_CHEAP = 1_048_576
"""Up to this price a body is cheap: some tens of milliseconds."""
_VALUE_BYTES = 256
"""A value of JSON takes as long as so many bytes of a text."""


def price(body: bytes, *, in_json: int) -> int:
    """What taking a body apart takes, in bytes of a plain text. in_json: how many of its bytes are JSON."""
    return len(body) + (_VALUE_BYTES * body.count(b",", 0, in_json) if in_json else 0)


class Readers:
    """Lives on the event loop."""

    def __init__(self) -> None:
        self._cheap = Line("read")
        self._dear = Line("read dear")

    async def run(self, function: Callable[[], R], *, price: int) -> R:
        """What the function gives; if the caller is cancelled before its turn, it is not called.

        Raises what it raises, or ShuttingDown.
        """
        line = self._cheap if price <= _CHEAP else self._dear
        return await line.put(function, rank=(price,)).answer

    def close(self) -> None:
        """Take no more; the threads end with what somebody waits for."""
        self._cheap.close()
        self._dear.close()
