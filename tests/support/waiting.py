"""Waiting for what another task or thread does, without sleeping."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until it holds. Fails after 30 s."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)
