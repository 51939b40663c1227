"""The event loop of a command that is no server."""

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

R = TypeVar("R")


def run(work: Coroutine[Any, Any, R]) -> R:
    """As `asyncio.run`, and a Ctrl-C wakes the loop. Raises KeyboardInterrupt once the work is cancelled.

    Alone, `asyncio.run` loses a Ctrl-C that falls between Python's last look for signals and the loop's wait. A busy
    machine makes that moment long, and nothing else may ever wake a loop that waits for a pipe or a server.
    """
    return asyncio.run(_woken_by_signals(work))


async def _woken_by_signals(work: Coroutine[Any, Any, R]) -> R:
    handler = signal.getsignal(signal.SIGINT)  # cancels the work; at the second Ctrl-C, raises
    if callable(handler):  # not where Ctrl-C is ignored
        with suppress(NotImplementedError, RuntimeError):  # on Windows, which wakes it anyway; in another thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)  # for its wake-up alone
            signal.signal(signal.SIGINT, handler)
    return await work
