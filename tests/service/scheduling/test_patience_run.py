"""Images that are made on a pool, on their way to the device threads; batches that wait for them."""

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EncoderFailed, UndecodableImage, VisiontowerError
from encoders.contract.values import Outputs, Pixels, TokenKind
from service.errors import DeviceLost, ShuttingDown
from service.memory.shape import Shape
from service.scheduling.items import Answer
from service.scheduling.lanes import Lanes
from service.scheduling.patience import Patience
from service.scheduling.resident import Resident
from tests.support.device_threads import SHAPE, Device, Gate, Later, alone, image, running
from tests.support.shapes import MODEL, image_shape

pytestmark = pytest.mark.anyio
LARGE = image_shape(side=16)
OTHER = "fake:other"
R = TypeVar("R")


class Watched(Patience):
    """told: when a batch is told to wait. The thread holds its lock then, and gives it up only to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def wait_s(self, shape: Shape, **facts: Any) -> float:
        seconds = super().wait_s(shape, **facts)
        if seconds > 0:
            self.told.set()
        return seconds

    async def waits_with(self, act: Callable[[], R]) -> R:
        """Do something after which the thread is to sleep with what waits."""
        self.told.clear()
        result = act()
        assert await asyncio.to_thread(self.told.wait, 30)
        return result


async def sleeps() -> None:
    """Wait until the device thread does."""
    (thread,) = (each for each in threading.enumerate() if each.name == "device 0")
    assert thread.ident is not None
    async with asyncio.timeout(30):
        while sys._current_frames()[thread.ident].f_code is not threading.Condition.wait.__code__:
            await asyncio.sleep(0)


async def has_been_round(device: Device) -> None:
    """The thread could have taken what is there: twice, as a call may find it on its way to the queue."""
    await device.threads.call(lambda: None)
    await device.threads.call(lambda: None)


async def test_what_is_made_on_a_pool_joins_the_queue_from_there() -> None:
    with ThreadPoolExecutor(2) as pool:
        async with running(FakeEncoder()) as device:
            answers = await asyncio.gather(*(device.submit_made(value, pool=pool) for value in range(10)))
    for value, answer in enumerate(answers):
        np.testing.assert_allclose(answer.row.pooled, alone(value), rtol=1e-6)


@pytest.mark.parametrize("error", [UndecodableImage("PNG", "cut off"), EncoderFailed("could not prepare the image")])
async def test_what_cannot_be_made_is_its_own_error_only(error: VisiontowerError) -> None:
    def broken() -> Pixels:
        raise error

    encoder = FakeEncoder()
    with ThreadPoolExecutor(1) as pool:
        async with running(encoder) as device:
            bad = device.submit_made(broken, pool=pool)
            good = device.submit_made(1, pool=pool)
            with pytest.raises(VisiontowerError) as caught:
                async with asyncio.timeout(30):
                    await bad
            assert caught.value is error
            await good
    assert encoder.batches == [1]


@pytest.mark.parametrize("stage", ["before it is made", "after it is made"])
async def test_nobody_s_item_is_neither_made_nor_run(stage: str) -> None:
    made: list[int] = []
    gate, pool, encoder = Gate(), Later(), FakeEncoder()
    encoder.before = gate

    def make() -> Pixels:
        made.append(1)
        return image(1)

    async with running(encoder) as device:
        first = await gate.shut_with_one_inside(lambda: device.submit(0))
        gone = device.submit_made(make, pool=pool)
        if stage == "before it is made":
            gone.cancel()
        pool.run()
        gone.cancel()
        await asyncio.sleep(0)  # done-callbacks run on the next turn of the loop
        gate.open.set()
        await first
    assert made == ([] if stage == "before it is made" else [1])
    assert encoder.batches == [1]


@pytest.mark.parametrize("leaves", ["is cancelled", "is abandoned"])
async def test_what_nobody_waits_for_any_more_when_it_is_made_is_not_run(leaves: str) -> None:
    begun, left = threading.Event(), threading.Event()

    def make() -> Pixels:
        begun.set()
        assert left.wait(30)
        return image(1)

    encoder = FakeEncoder()
    async with running(encoder) as device:
        with ThreadPoolExecutor(1) as pool:
            gone = device.submit_made(make, pool=pool)
            assert await asyncio.to_thread(begun.wait, 30)
            if leaves == "is cancelled":
                gone.cancel()
                await asyncio.sleep(0)  # done-callbacks run on the next turn of the loop
            else:
                device.threads.abandon(ShuttingDown())
                with pytest.raises(ShuttingDown):
                    await gone
            left.set()
        assert device.threads.waiting(MODEL) == (0, 0.0)
    assert encoder.batches == []


async def test_what_is_being_made_is_abandoned_with_the_rest() -> None:
    pool, encoder = Later(), FakeEncoder()
    async with running(encoder) as device:
        future = device.submit_made(1, pool=pool)
        device.threads.abandon(ShuttingDown())
        with pytest.raises(ShuttingDown):
            await future
        pool.run()
    assert encoder.batches == []


async def test_what_is_being_made_when_the_threads_stop_is_told() -> None:
    pool, encoder = Later(), FakeEncoder()
    async with running(encoder) as device:
        future = device.submit_made(1, pool=pool)
        assert await device.threads.stop(timeout_s=30)
        pool.run()
        with pytest.raises(DeviceLost):
            await future
    assert encoder.batches == []


@pytest.mark.parametrize("last", ["is made", "is broken", "is cancelled", "is abandoned by its caller while made"])
@pytest.mark.parametrize("is_patient", [True, False])
async def test_where_there_is_patience_a_batch_waits_for_what_is_being_made(is_patient: bool, last: str) -> None:
    """The clock runs only in forwards, ten seconds in each: the end of patience is not what ends the wait."""
    now, pool = [0.0], Later()

    def tick(batch: int) -> None:
        now[0] += 10

    def make() -> Pixels:
        if last == "is broken":
            raise UndecodableImage("JPEG", "it is torn")
        if last == "is abandoned by its caller while made":
            third.cancel()
        return image(3)

    encoder = FakeEncoder(before=tick)
    async with running(encoder, clock=lambda: now[0], patience=Patience() if is_patient else None) as device:
        await device.submit(0)
        first, second = (device.submit_made(value, pool=pool) for value in (1, 2))
        third = device.submit_made(make, pool=pool)
        for future in (first, second):
            pool.step()
            if not is_patient:
                await future
            await has_been_round(device)
        assert encoder.batches == ([1] if is_patient else [1, 1, 1])
        if last == "is cancelled":
            third.cancel()
        pool.step()
        async with asyncio.timeout(30):
            answers = await asyncio.gather(first, second, third, return_exceptions=True)
    together = 3 if last == "is made" else 2
    assert sum(isinstance(answer, Answer) for answer in answers) == together
    if is_patient:
        assert encoder.batches == [1, together]


async def test_a_batch_does_not_wait_for_what_was_expected_after_its_oldest_came() -> None:
    """Under load there is always another on its way. The clock stands still but where it is moved."""
    now, pool = [0.0], Later()

    def tick(batch: int) -> None:
        now[0] += 10

    encoder, watched = FakeEncoder(before=tick), Watched()
    async with running(encoder, clock=lambda: now[0], patience=watched) as device:
        await device.submit(0)
        await has_been_round(device)
        first, second = (device.submit_made(value, pool=pool) for value in (1, 2))
        now[0] += 1
        await watched.waits_with(pool.step)
        now[0] += 1
        later = device.submit_made(3, pool=pool)
        pool.step()
        async with asyncio.timeout(30):
            await asyncio.gather(first, second)
        pool.step()
        await later
    assert encoder.batches == [1, 2, 1]


@pytest.mark.parametrize("bound", ["patience", "ceiling"])
async def test_a_batch_that_has_become_large_enough_waits_for_no_more(bound: str) -> None:
    """Nothing but its growth wakes the thread: the clock stands still, and a third is still on its way."""
    now, pool = [0.0], Later()

    def tick(batch: int) -> None:
        now[0] += 10_000

    encoder = FakeEncoder(before=tick)
    enough, ceiling = (2, 8) if bound == "patience" else (32, 2)
    watched = Watched()
    lanes = Lanes(enough=enough)
    async with running(encoder, ceiling=ceiling, clock=lambda: now[0], lanes=lanes, patience=watched) as device:
        await device.submit(0)
        await has_been_round(device)
        first, second, third = (device.submit_made(value, pool=pool) for value in (1, 2, 3))
        await watched.waits_with(pool.step)
        assert encoder.batches == [1]
        pool.step()
        async with asyncio.timeout(30):
            await asyncio.gather(first, second)
        pool.step()
        await third
    assert encoder.batches == [1, 2, 1]


async def test_what_was_large_enough_for_one_line_is_not_what_another_must_wait_for() -> None:
    """A batch of one shape waited for many. One of another shape, of a lower ceiling, waits for no more than that."""
    now, pool = [0.0], Later()

    def tick(batch: int) -> None:
        now[0] += 10_000

    encoder, watched = FakeEncoder(before=tick), Watched()
    async with running(
        encoder,
        ceiling=lambda shape: 8 if shape is SHAPE else 2,
        clock=lambda: now[0],
        patience=watched,
    ) as device:
        await device.submit(0)
        await has_been_round(device)
        small = [device.submit_made(value, pool=pool) for value in (1, 2)]
        await watched.waits_with(pool.step)
        pool.step()
        await asyncio.gather(*small)
        large = [device.submit_made(value, pool=pool, shape=LARGE) for value in (3, 4, 5)]
        await watched.waits_with(pool.step)
        pool.step()
        async with asyncio.timeout(30):
            await asyncio.gather(*large[:2])
        pool.step()
        await large[2]
    assert encoder.batches == [1, 2, 2, 1]


async def test_an_item_is_cancelled_while_its_pixels_join_the_queue() -> None:
    """Whichever is first, it is not run, and nobody's turn is lost."""
    pool, gate = Later(), Gate()
    encoder = FakeEncoder(before=gate)
    async with running(encoder, patience=Patience()) as device:
        first = await gate.shut_with_one_inside(lambda: device.submit(0))
        gone = [device.submit_made(value, pool=pool) for value in range(1, 21)]
        with ThreadPoolExecutor(2) as threads:
            work, pool.work = pool.work, []
            running_work = [threads.submit(each) for each in work]
            for future in gone:
                future.cancel()
                await asyncio.sleep(0)
        for each in running_work:
            each.result()
        await asyncio.sleep(0)  # done-callbacks run on the next turn of the loop
        assert device.threads.waiting(MODEL) == (0, 0.0)
        kept = device.submit_made(21, pool=pool)
        pool.run()
        gate.open.set()
        async with asyncio.timeout(30):
            await asyncio.gather(first, kept)
    assert encoder.batches == [1, 1]


async def test_patience_ends() -> None:
    """By itself: nothing else happens on the threads when it does."""
    now, pool = [0.0], Later()

    def tick(batch: int) -> None:
        now[0] += 0.005

    watched = Watched()
    async with running(FakeEncoder(before=tick), clock=lambda: now[0], patience=watched) as device:
        await device.submit(0)
        for _ in range(2):
            await has_been_round(device)
            await sleeps()  # without an end: nothing is there
            first, never_made = (device.submit_made(value, pool=pool) for value in (1, 2))
            await watched.waits_with(pool.step)
            assert not first.done()
            now[0] += 0.02
            async with asyncio.timeout(30):
                await first
            never_made.cancel()
            pool.run()


async def test_nobody_waits_with_an_item_that_has_left() -> None:
    """The one that a batch waited with leaves: another shape's, that waits for nothing, runs without its patience."""
    now, pool = [0.0], Later()

    def tick(batch: int) -> None:
        now[0] += 10_000

    other = image_shape(outputs=Outputs(tokens=TokenKind.HIDDEN))
    watched = Watched()
    async with running(FakeEncoder(before=tick), clock=lambda: now[0], patience=watched) as device:
        await device.submit(0)
        leaves, never_made = (device.submit_made(value, pool=pool) for value in (1, 2))
        await watched.waits_with(pool.step)
        stays = await watched.waits_with(lambda: device.submit(3, other))
        leaves.cancel()
        async with asyncio.timeout(30):
            assert (await stays).row.tokens is not None
        never_made.cancel()


async def test_when_an_item_has_left_the_patience_that_counts_is_the_next_one_s() -> None:
    """A slow model's item leaves; two of a fast model are next. They wait for a third, and not for long."""
    now, pool, shape = [0.0], Later(), image_shape(OTHER)
    seconds = {MODEL: 10_000.0, OTHER: 0.005}

    def encoder(model: str) -> FakeEncoder:
        def tick(batch: int) -> None:
            now[0] += seconds[model]

        return FakeEncoder(fake_spec(model), before=tick)

    async with running(encoder(MODEL), clock=lambda: now[0], patience=Patience(), other_models=[OTHER]) as slow:
        fast = replace(slow, resident=Resident(encoder(OTHER)))
        await slow.submit(0)
        await fast.submit(1, shape)
        leaves = slow.submit_made(2, pool=pool)
        stay = [fast.submit_made(value, pool=pool, shape=shape) for value in (3, 4)]
        for _ in (leaves, *stay):
            pool.step()
        never_made = [slow.submit_made(5, pool=pool), fast.submit_made(6, pool=pool, shape=shape)]
        await has_been_round(slow)
        leaves.cancel()
        await asyncio.sleep(0)  # done-callbacks run on the next turn of the loop
        now[0] += 0.02
        async with asyncio.timeout(10):
            await asyncio.gather(*stay)
        for future in never_made:
            future.cancel()
