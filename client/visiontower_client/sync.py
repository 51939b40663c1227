"""Client: AsyncClient for programs without an event loop. It runs one on a thread of its own."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
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

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What it gives. A caller who is interrupted interrupts it. Raises RuntimeError if nothing could run it."""
        if not self.is_running or threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("The client is closed." if not self.is_running else "A client cannot wait for itself.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def cancel(self) -> None:
        """End what runs on it."""
        self.run(_cancel_others())

    def stop(self) -> None:
        """End the thread."""
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def is_running(self) -> bool:
        """Whether it has not been stopped."""
        return not self._loop.is_closed()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


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

        async def step() -> list[Embedding] | None:
            return await anext(running, None)

        try:
            while (found := self.loop.run(step())) is not None:
                yield from found
        finally:
            if self.loop.is_running:  # it may be left alone, and collected after the client was closed
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end the thread."""
        if self.loop.is_running:
            self.loop.cancel()  # first: what is cancelled gives its connection back, to be closed with the others
            self.loop.run(self.asynchronous.close())
            self.loop.stop()

    embed = _waiting(AsyncClient.embed)
    embed_iter = _iterating(AsyncClient.embed_lists)
    similarity = _waiting(AsyncClient.similarity)
    classify = _waiting(AsyncClient.classify)
    vram = _waiting(AsyncClient.vram)
    models = _waiting(AsyncClient.models)
    model = _waiting(AsyncClient.model)
    ready = _waiting(AsyncClient.ready)
