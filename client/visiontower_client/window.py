"""Many jobs under way at once, a window of them, and their results in order or as they come."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

J = TypeVar("J")
R = TypeVar("R")


async def in_window(
    jobs: AsyncIterator[J], do: Callable[[J], Awaitable[R]], *, window: int, ordered: bool
) -> AsyncGenerator[R, None]:
    """What `do` gives for each job; `window` jobs at most are taken and their results not yet handed on.

    A slow consumer holds the jobs back, and a slow source holds no result back. The first error ends everything.
    """
    done: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
    room = asyncio.Semaphore(window)
    tasks: set[asyncio.Task[R]] = set()

    async def run(job: J) -> R:
        return await do(job)

    async def feed() -> None:
        while True:
            await room.acquire()
            try:
                job = await anext(jobs)
            except StopAsyncIteration:
                return
            task = asyncio.create_task(run(job))
            tasks.add(task)
            if ordered:
                done.put_nowait(task)
            else:
                task.add_done_callback(done.put_nowait)

    feeder = asyncio.create_task(feed())
    feeder.add_done_callback(done.put_nowait)
    try:
        while tasks or not feeder.done():
            task = await done.get()
            result = await task
            if task is not feeder:
                tasks.discard(task)
                room.release()
                yield result
        await feeder
    finally:
        for each in (feeder, *tasks):
            each.cancel()
        await asyncio.gather(feeder, *tasks, return_exceptions=True)
