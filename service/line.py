"""A line of pieces of work before one thread: the lowest rank goes first, and equal ranks in the order they came.

A piece whose asker leaves before it begins is dropped. So whoever asks for much asks piece by piece, with a rank that
says how much it is, and nobody waits for more than the piece that runs and those of a lower rank.

A piece is Python for milliseconds, and an image's way has a dozen hand-overs between threads. At each of them a thread
waits for the interpreter up to Python's switch interval, which is 5 ms. So the interval is short while a piece runs.
"""

import asyncio
import itertools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from heapq import heappop, heappush
from typing import Any, Generic, TypeAlias, TypeVar

from service.errors import ShuttingDown

R = TypeVar("R")
Rank: TypeAlias = tuple[int, ...]

_SWITCH_S = 0.0003


class _TakingTurns:
    """Runs pieces, of whatever line. The interpreter's switch interval is short while any runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces = 0
        self._usual = 0.0

    def run(self, piece: Callable[[], R]) -> R:
        with self._lock:
            if not self._pieces:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(_SWITCH_S)
            self._pieces += 1
        try:
            return piece()
        finally:
            with self._lock:
                self._pieces -= 1
                if not self._pieces:
                    sys.setswitchinterval(self._usual)


_TAKING_TURNS = _TakingTurns()


class Place(Generic[R]):
    """A piece of work in the line. answer: its result; a cancelled one leaves the line."""

    def __init__(self, function: Callable[[], R], answer: "asyncio.Future[R]") -> None:
        self.function = function
        self.answer = answer
        self.has_begun = False

    def forget(self, answer: "asyncio.Future[R]") -> None:
        """Hold the work no longer: a place that was left may stay in a busy line for long."""
        del self.function


class Line:
    """Lives on the event loop; the work is done on one thread beside it. name: of the thread."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: list[tuple[Rank, int, Place[Any]]] = []  # a heap; a place that was moved up is in it twice
        self._numbers = itertools.count()
        self._is_working = self._is_closed = False

    def put(self, function: Callable[[], R], *, rank: Rank) -> Place[R]:
        """Take a place. Raises ShuttingDown once the line is closed."""
        if self._is_closed:
            raise ShuttingDown
        place = Place(function, asyncio.get_running_loop().create_future())
        place.answer.add_done_callback(place.forget)
        self.move_up(place, rank)
        return place

    def move_up(self, place: Place[Any], rank: Rank) -> None:
        """Let it wait at a lower rank too. It changes nothing if the piece has begun."""
        heappush(self._waiting, (rank, next(self._numbers), place))
        self._next()

    def close(self) -> None:
        """Take no more; the thread ends with the pieces that somebody waits for."""
        self._is_closed = True
        self._next()

    def _next(self) -> None:
        while self._waiting and not self._is_working:
            _, _, place = heappop(self._waiting)
            if not place.has_begun and not place.answer.done():
                place.has_begun = self._is_working = True
                work = asyncio.get_running_loop().run_in_executor(
                    self._thread, partial(_TAKING_TURNS.run, place.function)
                )
                work.add_done_callback(partial(self._worked, place))
        if self._is_closed and not self._is_working:
            self._thread.shutdown(wait=False)

    def _worked(self, place: Place[Any], work: "asyncio.Future[Any]") -> None:
        self._is_working = False
        error = work.exception()
        if place.answer.done():
            pass  # nobody waits any more
        elif error is not None:
            place.answer.set_exception(error)
        else:
            place.answer.set_result(work.result())
        self._next()
