"""Tasks side by side, and the end of one that nobody waits for any more."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

R = TypeVar("R")


async def together(works: Iterable[Coroutine[Any, Any, R]]) -> list[R]:
    """The results of works that run side by side, in order. If one fails, or the caller is cancelled, all are.

    As asyncio.TaskGroup. Once cancelled, that one leaves a cycle before Python 3.13, with all that the works held.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel the task if it still runs. Its error is dropped: the caller raises another, or has raised this one."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
