"""Client: AsyncClient for programs without an event loop. It runs one on a thread of its own."""

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from visiontower_client.client import AsyncClient
from visiontower_client.values import Embedding
from visiontower_client.wire import MOST_BYTES

P = ParamSpec("P")
T = TypeVar("T")


class _Loop:
    """An event loop on a thread, which ends with the program."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="visiontower-client", daemon=True)
        self._thread.start()
        self._process = os.getpid()
        self._is_closed = False
        self.iterations: weakref.WeakSet[AsyncGenerator[Any, None]] = weakref.WeakSet()
        self._door = threading.Lock()  # nothing begins on the loop once it is being closed: nobody would run it

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What it gives. A caller who is interrupted interrupts it. Raises RuntimeError if nothing could run it."""
        try:
            self._require_can_wait()
            with self._door:
                if self._is_closed:
                    raise RuntimeError("The client is closed.")
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, last: Callable[[], Awaitable[None]]) -> None:
        """End what runs on it, wait for `last`, and end the thread. Twice is once, and nothing in a forked process."""
        if os.getpid() != self._process:
            return
        self._require_can_wait()
        with self._door:
            is_first, self._is_closed = not self._is_closed, True
        if is_first:
            asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if is_first:
            self._loop.close()

    @property
    def is_running(self) -> bool:
        """Whether work can begin on it."""
        return not self._is_closed and os.getpid() == self._process

    def _require_can_wait(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("This client was made before its process was forked: make a client in each process.")
        if threading.current_thread() is self._thread:
            raise RuntimeError("A client cannot wait for itself.")

    async def _end(self, last: Callable[[], Awaitable[None]]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)  # what is cancelled gives its connection back
        for iteration in list(self.iterations):  # from without to within, as shutdown_asyncgens does not
            await iteration.aclose()
        await last()
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()


def _waiting(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """The method of AsyncClient, waited for."""

    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.loop.run(method(self.asynchronous, *args, **kwargs))

    update_wrapper(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[list[Embedding], None]],
) -> Callable[Concatenate["Client", P], Iterator[Embedding]]:
    """The method of AsyncClient, step by step. A step is the inputs of a request: the loop's thread is woken once."""

    def iterate(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Embedding]:
        running = method(self.asynchronous, *args, **kwargs)
        self.loop.iterations.add(running)

        async def step() -> list[Embedding] | None:
            return await anext(running, None)

        try:
            while (found := self.loop.run(step())) is not None:
                yield from found
        finally:
            if self.loop.is_running:  # it may be left alone, and collected where the client is closed
                self.loop.run(running.aclose())

    update_wrapper(iterate, method)
    return iterate


class Client:
    """A server of visiontower, for programs without an event loop. Arguments and calls are those of AsyncClient.

    Several threads may use one. Use it in `with`, or call `close`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 90.0,
        in_flight: int = 8,
        retries: int = 6,
        max_answer_bytes: int = MOST_BYTES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.asynchronous = AsyncClient(
            url,
            api_key=api_key,
            timeout=timeout,
            in_flight=in_flight,
            retries=retries,
            max_answer_bytes=max_answer_bytes,
            transport=transport,
        )
        self.loop = _Loop()
        # A client that is left alone, also until the program ends: then its thread is stopped before what waits for it
        # is collected.
        self._closing = weakref.finalize(self, self.loop.close, self.asynchronous.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end the thread."""
        self.loop.close(self.asynchronous.close)
        self._closing.detach()

    embed = _waiting(AsyncClient.embed)
    embed_iter = _iterating(AsyncClient.embed_lists)
    similarity = _waiting(AsyncClient.similarity)
    classify = _waiting(AsyncClient.classify)
    vram = _waiting(AsyncClient.vram)
    models = _waiting(AsyncClient.models)
    model = _waiting(AsyncClient.model)
    ready = _waiting(AsyncClient.ready)
