"""Looks up hosts by the system's resolver, which may take as long as it likes."""

import asyncio
import socket
import threading
from contextlib import suppress

_AT_ONCE = 16


class LookUps:
    """Host and port -> addresses. A slow resolver holds nothing but this object's own few threads.

    A look-up that nobody waits for any more goes on until the resolver lets go of its thread; the next ones wait for a
    free thread on the event loop. The threads are daemons: they do not keep the process from ending.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def __call__(self, host: str, port: int) -> list[str]:
        """The host's addresses. Raises OSError; UnicodeError for a name that is none."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def end(addresses: list[str], error: Exception | None) -> None:
            self._free.release()
            if answer.done():  # nobody waits any more
                return
            if error is None:
                answer.set_result(addresses)
            else:
                answer.set_exception(error)

        def look_up() -> None:
            addresses: list[str] = []
            failure: Exception | None = None
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = [str(address[0]) for *_, address in found]
            except Exception as error:
                failure = error
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(end, addresses, failure)

        threading.Thread(target=look_up, name="look-up", daemon=True).start()
        return await answer
