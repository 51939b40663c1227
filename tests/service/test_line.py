"""The line before one thread: who goes first, who is dropped, and how it ends."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.errors import ShuttingDown
from service.line import Line

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def held() -> AsyncIterator[tuple[Line, threading.Event]]:
    """A line whose thread is at work until the event is set."""
    line, goes_on = Line("test"), threading.Event()
    first = line.put(lambda: goes_on.wait(30), rank=(9,))
    assert first.has_begun
    yield line, goes_on
    goes_on.set()
    assert await first.answer
    line.close()


async def test_the_lowest_rank_goes_first_and_equal_ones_in_order() -> None:
    done: list[str] = []
    async with held() as (line, goes_on):
        places = [
            line.put(lambda name=name: done.append(name), rank=rank)  # type: ignore[misc]  # mypy and defaults
            for name, rank in (("much", (5,)), ("a", (1,)), ("b", (1,)), ("less", (0, 7)), ("least", (0, 1)))
        ]
        goes_on.set()
        await asyncio.gather(*(place.answer for place in places))
    assert done == ["least", "less", "a", "b", "much"]


async def test_who_leaves_is_dropped_and_who_moves_up_goes_once() -> None:
    done: list[str] = []
    async with held() as (line, goes_on):
        left = line.put(lambda: done.append("left"), rank=(0,))
        first = line.put(lambda: done.append("first"), rank=(1,))
        moved = line.put(lambda: done.append("moved"), rank=(2,))
        line.move_up(moved, (0,))
        left.answer.cancel()
        goes_on.set()
        await asyncio.gather(first.answer, moved.answer)
        await line.put(lambda: None, rank=(9,)).answer
    assert done == ["moved", "first"]
    assert not left.has_begun


async def test_an_error_is_the_asker_s_and_the_line_goes_on() -> None:
    line = Line("test")
    with pytest.raises(ZeroDivisionError):
        await line.put(lambda: 1 / 0, rank=(0,)).answer
    assert await line.put(lambda: 1, rank=(0,)).answer == 1
    line.close()


async def test_a_closed_line_ends_with_those_who_wait_and_takes_nobody_new() -> None:
    async with held() as (line, goes_on):
        waits = line.put(lambda: "done", rank=(0,))
        line.close()
        with pytest.raises(ShuttingDown):
            line.put(lambda: None, rank=(0,))
        goes_on.set()
        assert await waits.answer == "done"


async def test_threads_take_turns_more_often_while_a_piece_runs() -> None:
    """At every hand-over an image waits for the interpreter up to the switch interval."""
    line, before, usual = Line("test"), sys.getswitchinterval(), 0.005
    sys.setswitchinterval(usual)
    try:
        assert await line.put(sys.getswitchinterval, rank=(0,)).answer < usual / 10
        assert sys.getswitchinterval() == usual
    finally:
        sys.setswitchinterval(before)
        line.close()
