"""Items read on threads, ahead of the forwards."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError
from service.bulk.items import Item, Pending, Row, Unread

R = TypeVar("R")
_AHEAD, _THREADS = 32, 16
"""Pending images that are read before they are asked for, and threads that read them."""


def read(items: Iterator[Item], count: int) -> list[Item]:
    """The next items, fewer at the end."""
    return list(islice(items, count))


def on_a_thread(function: Callable[[], R]) -> "asyncio.Future[R]":
    """The function's result, from a thread that ends with the process: reading of a pipe may never end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        if answer.cancelled():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # there is one where there is no error

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the run has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="read items", daemon=True).start()
    return answer


def read_ahead(rows: Iterator[Row]) -> Iterator[Item]:
    """The items in order, with their images. A number of these are being read at a time.

    An error of `rows` comes after the items before it, as a BulkError.
    """
    waiting: deque[tuple[Item, Future[bytes | ImageError] | None]] = deque()
    readers: _Readers | None = None
    trouble: BulkError | None = None
    try:
        while True:
            try:
                each = next(rows, None)
            except (BulkError, OSError) as error:
                trouble, each = broken_off(error), None
            if isinstance(each, Pending):
                readers = readers or _Readers()
                waiting.append((each.item, readers.submit(each.unread)))
            elif each is not None:
                waiting.append((each, None))
            while waiting and (each is None or waiting[0][1] is None or len(waiting) > _AHEAD):
                item, future = waiting.popleft()
                yield item if future is None else replace(item, source=future.result())
            if each is None:
                break
        if trouble is not None:
            raise trouble
    finally:
        if readers is not None:
            readers.close()


def broken_off(error: BulkError | OSError) -> BulkError:
    """The error of a run whose inputs end before their time."""
    if isinstance(error, BulkError):
        return error
    return BulkError(f"The inputs broke off: {error}. What is done is kept; the same command continues.")


class _Readers:
    """Threads that read images. They end with the process: a server that does not answer must not keep it."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._wanted: SimpleQueue[tuple[Unread, Future[bytes | ImageError]] | None] = SimpleQueue()
        for number in range(_THREADS):
            threading.Thread(target=self._work, name=f"bulk-read-{number}", daemon=True).start()

    def submit(self, unread: Unread) -> "Future[bytes | ImageError]":
        """What it gives, once it is read."""
        future: Future[bytes | ImageError] = Future()
        self._wanted.put((unread, future))
        return future

    def close(self) -> None:
        """Nobody waits for what is not read yet."""
        self._stop.set()
        for _ in range(_THREADS):
            self._wanted.put(None)

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            unread, future = wanted
            if self._stop.is_set():
                continue
            try:
                future.set_result(unread.read(self._stop))
            except BaseException as error:
                future.set_exception(error)
