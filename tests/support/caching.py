"""Requests to an engine that has a result cache."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from encoders.adapters.fake import FakeEncoder
from encoders.contract.encoder import Encoder
from encoders.contract.errors import VisiontowerError
from service.engine import EmbedRequest, Engine
from service.engine.values import EmbedResult
from service.settings import Settings
from tests.support.serving import backend_of, noise

MIB = 2**20


@asynccontextmanager
async def engine_of(*encoders: Encoder, cache: int = MIB, **given: Any) -> AsyncIterator[Engine]:
    """An engine with a result cache of so many bytes, of the fake encoder if of no other."""
    encoders = encoders or (FakeEncoder(),)
    chosen = Settings(model=tuple(each.spec.id for each in encoders), cache=cache, **given)
    async with asyncio.timeout(30), Engine(chosen, backend=backend_of(*encoders)) as engine:
        yield engine


def asking(engine: Engine, image: int | bytes, **options: Any) -> "asyncio.Task[EmbedResult]":
    """A request of one image: these bytes, or noise of this seed."""
    source = noise(image) if isinstance(image, int) else image
    return asyncio.create_task(engine.embed(EmbedRequest([source], **options)))


def looked_up(result: EmbedResult) -> tuple[int, int]:
    """Hits and misses."""
    assert result.cached is not None
    return result.cached.hits, result.cached.misses


Numbers: TypeAlias = tuple[bytes, ...]


def numbers(result: EmbedResult) -> Numbers:
    """Every byte of every array; an error by its words."""
    parts = []
    for item in result.items:
        if isinstance(item, VisiontowerError):
            parts.append(str(item).encode())
            continue
        for array in (item.tokens, item.pooled):
            parts.append(b"" if array is None else str((array.dtype, array.shape)).encode() + array.tobytes())
    return tuple(parts)


async def turns(number: int = 20) -> None:
    """Let the event loop run so many times."""
    for _ in range(number):
        await asyncio.sleep(0)
