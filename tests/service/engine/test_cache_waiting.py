"""A row in the making: whoever asks for it meanwhile waits for it, and nobody fails for another's fault."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.errors import EncoderFailed, VisiontowerError
from encoders.contract.values import Encoded, Grid
from service.engine import Engine
from service.engine.cache.results import Found, Made, ResultCache
from service.errors import DeadlineExceeded, ShuttingDown
from service.scheduling.items import Answer
from service.telemetry.metrics import Metrics
from tests.support.caching import MIB, asking, engine_of, looked_up, numbers, turns
from tests.support.serving import Gate
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@dataclass
class Held:
    """An engine whose forwards wait at a gate."""

    engine: Engine
    encoder: FakeEncoder
    gate: Gate


@asynccontextmanager
async def held(**given: Any) -> AsyncIterator[Held]:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with engine_of(encoder, **given) as engine:
        encoder.batches.clear()
        gate.close()
        try:
            yield Held(engine, encoder, gate)
        finally:
            gate.is_open.set()


async def test_who_asks_for_a_row_in_the_making_waits_for_it() -> None:
    async with held() as at:
        first = asking(at.engine, 1)
        await at.gate.someone_inside()
        others = [asking(at.engine, 1) for _ in range(3)]
        await turns()
        at.gate.is_open.set()
        results = await asyncio.gather(first, *others)
        assert at.encoder.batches == [1]
        assert [looked_up(each) for each in results] == [(0, 1), (1, 0), (1, 0), (1, 0)]
        assert len({numbers(each) for each in results}) == 1
        assert [each.cached.age_s for each in results if each.cached] == [0.0] * 4
        assert all(each.timing.queue > 0 == each.timing.forward for each in results[1:])


async def test_if_the_first_leaves_another_makes_the_row() -> None:
    async with held() as at:
        first = asking(at.engine, 1)
        await at.gate.someone_inside()
        others = [asking(at.engine, 1) for _ in range(3)]
        await turns()
        first.cancel()
        await until(first.done)
        at.gate.is_open.set()
        assert [looked_up(each) for each in await asyncio.gather(*others)] == [(0, 1), (1, 0), (1, 0)]
        assert at.encoder.batches == [1, 1]


async def test_who_waits_and_leaves_takes_nothing_along() -> None:
    async with held() as at:
        first = asking(at.engine, 1)
        await at.gate.someone_inside()
        second, third = asking(at.engine, 1), asking(at.engine, 1)
        await turns()
        second.cancel()
        await until(second.done)
        at.gate.is_open.set()
        assert looked_up(await first) == (0, 1)
        assert looked_up(await third) == (1, 0)


async def test_everybody_has_a_deadline_of_his_own() -> None:
    async with held() as at:
        hurried = asking(at.engine, 1, timeout_s=0.05)
        await at.gate.someone_inside()
        patient, late = asking(at.engine, 1), asking(at.engine, 1, timeout_s=0.05)
        for each in (hurried, late):
            with pytest.raises(DeadlineExceeded):
                await each
        assert not patient.done()
        at.gate.is_open.set()
        assert looked_up(await patient) == (0, 1)


@pytest.mark.parametrize("reason", [DeadlineExceeded(), ShuttingDown(), None], ids=str)
async def test_a_reason_of_the_first_s_own_is_nobody_else_s(reason: VisiontowerError | None) -> None:
    """None: it fails in a way that nobody foresaw."""
    cache = ResultCache(MIB, about=(), metrics=Metrics([]))
    may_end = asyncio.Event()

    async def fail() -> Made:
        await may_end.wait()
        if reason is None:
            raise RuntimeError
        return reason

    async def make() -> Made:
        made.append(1)
        return Answer(Encoded(Grid(1, 1), pooled=np.ones(3, np.float32)), 0.0, 0.0)

    made: list[int] = []
    first = asyncio.create_task(cache.row(b"image", b"origin", fail))
    await turns()
    others = [asyncio.create_task(cache.row(b"image", b"origin", make)) for _ in range(3)]
    await turns()
    may_end.set()
    found = await asyncio.gather(first, *others, return_exceptions=True)
    cache.close()
    assert isinstance(found[0], RuntimeError) if reason is None else found[0] == Found(reason, None)
    assert [isinstance(each, Found) and isinstance(each.made, Answer) for each in found[1:]] == [True] * 3
    assert made == [1]


async def test_what_ends_all_ends_those_too_who_wait_for_another_s_row() -> None:
    async with held() as at:
        tasks = [asking(at.engine, 1) for _ in range(3)]
        await at.gate.someone_inside()
        await turns()
        at.engine.threads.abandon(ShuttingDown())
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in found] == [ShuttingDown] * 3


async def test_a_failure_is_told_to_those_who_wait_and_not_kept() -> None:
    gate, failures = Gate(), 0

    def before(batch: int) -> None:
        nonlocal failures
        gate(batch)
        if failures:
            failures -= 1
            raise EncoderFailed("It fails once.", model="fake:vit")

    async with engine_of(FakeEncoder(before=before)) as engine:
        failures = 1
        gate.close()
        tasks = [asking(engine, 1) for _ in range(2)]
        await gate.someone_inside()
        await turns()
        gate.is_open.set()
        found = await asyncio.gather(*tasks)
        assert [type(each.items[0]) for each in found] == [EncoderFailed] * 2
        assert looked_up(await asking(engine, 1)) == (0, 1)
        assert looked_up(await asking(engine, 1)) == (1, 0)


async def test_a_kept_row_does_not_hold_its_batch() -> None:
    async with held(max_batch=8) as at:
        first = asking(at.engine, 0)
        await at.gate.someone_inside()
        await asyncio.gather(opening(at.gate), first, *(asking(at.engine, seed) for seed in range(1, 9)))
        assert max(at.encoder.batches) > 1
        (item,) = (await asking(at.engine, 5, prefix=True)).items
        assert not isinstance(item, VisiontowerError)
        tokens = item.tokens
        assert tokens is not None
        while isinstance(tokens.base, np.ndarray):
            tokens = tokens.base
        assert tokens.base is None
        assert tokens.nbytes == 17 * 12 * 4


async def opening(gate: Gate) -> None:
    await turns(200)
    gate.is_open.set()
