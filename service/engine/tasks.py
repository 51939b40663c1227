"""The end of a task that nobody waits for any more."""

import asyncio
from typing import Any


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel the task if it still runs. Its error is dropped: the caller raises another, or has raised this one."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
