"""The device thread and its futures. Time is a number that the test sets; order is a gate that forwards wait at."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EncoderFailed, UndecodableImage, VisiontowerError
from encoders.contract.values import Encoded, Outputs, Pixels, TokenKind
from service.errors import DeadlineExceeded, DeviceLost, ShuttingDown
from service.memory.shape import Shape
from service.scheduling.items import Answer
from service.scheduling.patience import Patience
from service.scheduling.resident import Resident
from tests.support.device_threads import NEVER, SHAPE, TEXT, Device, Gate, Later, alone, image, running
from tests.support.shapes import MODEL, image_shape

pytestmark = pytest.mark.anyio
LARGE = image_shape(side=16)
OTHER = "fake:other"
R = TypeVar("R")


class Poisoned(FakeEncoder):
    """Fails, as a device might, on a batch with a pixel of 255 in it."""

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        encoded = super().encode(pixels, outputs)
        if (pixels == 255).any():
            raise RuntimeError("device-side assert")
        return encoded


class Watched(Patience):
    """told: when a batch is told to wait. The thread holds its lock then, and gives it up only to sleep."""

    def __init__(self, *, enough: int = 32) -> None:
        super().__init__(enough=enough)
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


def patience() -> Patience:
    return Patience(enough=32)


async def has_been_round(device: Device) -> None:
    """The thread could have taken what is there: twice, as a call may find it on its way to the queue."""
    await device.threads.call(lambda: None)
    await device.threads.call(lambda: None)


# What is answered.


async def test_a_row_is_what_the_image_alone_would_give() -> None:
    async with running(FakeEncoder()) as device:
        answers = await asyncio.gather(*(device.submit(value) for value in range(10)))
    for value, answer in enumerate(answers):
        np.testing.assert_allclose(answer.row.pooled, alone(value), rtol=1e-6)


async def test_what_arrives_during_a_forward_shares_the_next() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with running(encoder, ceiling=3) as device:
        first = await gate.shut_with_one_inside(lambda: device.submit(0))
        others = [device.submit(value) for value in range(1, 6)]
        gate.open.set()
        await asyncio.gather(first, *others)
    assert encoder.batches == [1, 3, 2]


async def test_the_ceiling_is_asked_for_each_shape() -> None:
    encoder = FakeEncoder()
    async with running(encoder, ceiling=lambda shape: 2 if shape is SHAPE else 1) as device:
        async with device.occupied():
            shapes = [SHAPE, SHAPE, SHAPE, LARGE, LARGE]
            futures = [device.submit(value, shape) for value, shape in enumerate(shapes)]
        await asyncio.gather(*futures)
    assert encoder.batches == [2, 1, 1, 1]


async def test_all_forwards_run_on_one_thread_that_is_not_the_loop() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as device:
        await device.submit(1)
        await device.submit_text("a")
        assert {await device.threads.call(threading.get_ident)} == encoder.threads
    assert threading.get_ident() not in encoder.threads


async def test_texts_give_their_own_rows() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as device:
        answers = await asyncio.gather(*(device.submit_text(text) for text in ("one", "two")))
    rows = encoder.encode_text(encoder.tokenize(["one", "two"]))
    np.testing.assert_allclose(np.stack([answer.row for answer in answers]), rows)


async def test_an_item_is_run_by_the_encoder_it_was_submitted_to() -> None:
    first, second = FakeEncoder(), FakeEncoder(fake_spec(OTHER))
    async with running(first, other_models=[OTHER]) as device:
        await device.threads.submit(Resident(second), image_shape(OTHER), image(1), deadline=NEVER)
    assert (first.batches, second.batches) == ([], [1])


async def test_who_waited_how_long_is_answered_and_counted_once_a_batch() -> None:
    gate, now = Gate(), [100.0]
    async with running(FakeEncoder(before=gate), ceiling=2, clock=lambda: now[0]) as device:
        first = await gate.shut_with_one_inside(lambda: device.submit(0))
        others = [device.submit(1)]
        now[0] = 101.0
        others += [device.submit(value) for value in (2, 3)]
        now[0] = 104.0
        gate.open.set()
        answers = await asyncio.gather(first, *others)
    assert [(answer.queue_s, answer.forward_s) for answer in answers] == [(0, 4), (4, 0), (3, 0), (3, 0)]
    assert [(forward.items, forward.queue_s, forward.forward_s) for forward in device.metrics.forwards] == [
        (1, [0.0], 4.0),
        (2, [4.0, 3.0], 0.0),
        (1, [3.0], 0.0),
    ]
    assert {(forward.model, forward.size) for forward in device.metrics.forwards} == {(MODEL, SHAPE.size)}


async def test_the_limits_learn_how_long_each_forward_took() -> None:
    now = [0.0]

    def tick(batch: int) -> None:
        now[0] += 3 * batch

    async with running(FakeEncoder(before=tick), ceiling=2, clock=lambda: now[0]) as device:
        await asyncio.gather(*await device.submit_together(0, 1, 2))
        await device.submit_text("a")
    assert device.limits.learnt == [
        (SHAPE, 2, 6.0),
        (SHAPE, 1, 3.0),
        (TEXT, 1, 3.0),
    ]


async def test_the_limits_learn_nothing_of_a_batch_that_failed() -> None:
    """It may fail at once, and the next would be as large as if forwards were that fast."""
    async with running(Poisoned()) as device:
        with pytest.raises(EncoderFailed):
            await device.submit(255)
        assert device.limits.learnt == []
        await asyncio.gather(*await device.submit_together(1, 255), return_exceptions=True)
    assert [(shape, items) for shape, items, _ in device.limits.learnt] == [(SHAPE, 2)]


async def test_a_batch_is_cut_if_the_budget_left_others_of_its_shape_waiting() -> None:
    async with running(FakeEncoder(), ceiling=2) as device:
        await asyncio.gather(*await device.submit_together(0, 1, 2))
        async with device.occupied():
            futures = [device.submit(3), device.submit(4), device.submit(5, LARGE)]
        await asyncio.gather(*futures)
    assert [forward.is_cut for forward in device.metrics.forwards] == [True, False, False, False]


async def test_texts_are_counted_without_a_size() -> None:
    async with running(FakeEncoder()) as device:
        await device.submit_text("a")
    assert [(forward.size, forward.items) for forward in device.metrics.forwards] == [(None, 1)]


async def test_what_waits_and_how_long_is_known() -> None:
    gate, now = Gate(), [100.0]
    async with running(FakeEncoder(before=gate), clock=lambda: now[0]) as device:
        first = await gate.shut_with_one_inside(lambda: device.submit(0))
        waiting = [device.submit_text("a"), device.submit(1)]
        now[0] = 103.0
        assert device.threads.waiting(MODEL) == (1, 3.0)
        assert device.threads.waiting(OTHER) == (0, 0.0)
        gate.open.set()
        await asyncio.gather(first, *waiting)
        assert device.threads.waiting(MODEL) == (0, 0.0)


async def test_how_long_the_thread_is_at_it_is_known() -> None:
    gate, now = Gate(), [100.0]
    async with running(FakeEncoder(before=gate), clock=lambda: now[0]) as device:
        assert device.threads.busy_s == 0
        inside = await gate.shut_with_one_inside(lambda: device.submit(0))
        now[0] = 107.0
        assert device.threads.busy_s == 7.0
        gate.open.set()
        await inside
        await device.threads.call(lambda: None)
    assert device.threads.busy_s == 0


# Sets.


async def test_nobody_shares_a_forward_with_a_set() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as device:
        async with device.occupied():
            futures = [device.submit(0), *device.submit_set(1, 2, 3), device.submit(4), *device.submit_set(5)]
        answers = await asyncio.gather(*futures)
    assert encoder.batches == [2, 3, 1]
    for value, answer in enumerate(answers):
        np.testing.assert_allclose(answer.row.pooled, alone(value), rtol=1e-6)


async def test_a_ceiling_splits_a_set_in_order() -> None:
    batches: list[list[int]] = []

    class Watched(FakeEncoder):
        def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
            batches.append([int(row[0, 0, 0]) for row in pixels])
            return super().encode(pixels, outputs)

    async with running(Watched(), ceiling=2) as device:
        async with device.occupied():
            futures = [*device.submit_set(0, 1, 2, 3, 4), device.submit(5)]
        await asyncio.gather(*futures)
    assert batches == [[0, 1], [2, 3], [4], [5]]


async def test_a_set_of_nothing_waits_for_nothing() -> None:
    async with running(FakeEncoder()) as device:
        assert device.submit_set() == []
        assert device.threads.waiting(MODEL) == (0, 0.0)
        async with asyncio.timeout(30):
            assert isinstance(await device.submit(1), Answer)


async def test_an_item_of_a_set_that_was_cancelled_is_not_run() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as device:
        async with device.occupied():
            kept, gone = device.submit_set(1, 2)
            gone.cancel()
            await asyncio.sleep(0)  # done-callbacks run on the next turn of the loop
        await kept
    assert encoder.batches == [1]


async def test_a_set_does_not_wait_for_what_is_being_made() -> None:
    now, pool = [0.0], Later()

    def tick(batch: int) -> None:
        now[0] += 10_000

    encoder = FakeEncoder(before=tick)
    async with running(encoder, clock=lambda: now[0], patience=patience()) as device:
        await device.submit(0)
        coming = device.submit_made(1, pool=pool)
        async with asyncio.timeout(30):
            await asyncio.gather(*device.submit_set(2, 3))
        pool.run()
        await coming
    assert encoder.batches == [1, 2, 1]


# What is made on a pool.


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
    async with running(encoder, clock=lambda: now[0], patience=patience() if is_patient else None) as device:
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


@pytest.mark.parametrize("bound", ["patience", "ceiling"])
async def test_a_batch_that_has_become_large_enough_waits_for_no_more(bound: str) -> None:
    """Nothing but its growth wakes the thread: the clock stands still, and a third is still on its way."""
    now, pool = [0.0], Later()

    def tick(batch: int) -> None:
        now[0] += 10_000

    encoder = FakeEncoder(before=tick)
    enough, ceiling = (2, 8) if bound == "patience" else (32, 2)
    watched = Watched(enough=enough)
    async with running(encoder, ceiling=ceiling, clock=lambda: now[0], patience=watched) as device:
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
    async with running(encoder, patience=patience()) as device:
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
            await asyncio.sleep(0.05)  # by now it waits without an end: nothing is there
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

    async with running(encoder(MODEL), clock=lambda: now[0], patience=patience(), other_models=[OTHER]) as slow:
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


# Who leaves, or comes too late.


async def test_a_cancelled_item_is_not_run() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with running(encoder) as device:
        first = await gate.shut_with_one_inside(lambda: device.submit(0))
        kept, gone = (device.submit(value) for value in (1, 2))
        gone.cancel()
        await asyncio.sleep(0)  # done-callbacks run on the next turn of the loop
        gate.open.set()
        await asyncio.gather(first, kept)
    assert encoder.batches == [1, 1]


async def test_cancelling_what_already_runs_harms_nobody() -> None:
    gate = Gate()
    async with running(FakeEncoder(before=gate)) as device:
        first = await gate.shut_with_one_inside(lambda: device.submit(0))
        first.cancel()
        gate.open.set()
        assert isinstance(await device.submit(1), Answer)


async def test_an_item_past_its_deadline_is_not_run() -> None:
    gate, now = Gate(), [0.0]
    encoder = FakeEncoder(before=gate)
    async with running(encoder, clock=lambda: now[0]) as device:
        first = await gate.shut_with_one_inside(lambda: device.submit(0, deadline=10.0))
        late = device.submit(1, deadline=10.0)
        now[0] = 10.0
        gate.open.set()
        await first
        with pytest.raises(DeadlineExceeded):
            await late
    assert encoder.batches == [1]


async def test_what_waits_behind_those_who_are_too_late_is_run() -> None:
    now = [0.0]
    async with running(FakeEncoder(), clock=lambda: now[0]) as device:
        async with device.occupied():
            late, good = device.submit(0, deadline=10.0), device.submit(1, LARGE)
            now[0] = 10.0
        async with asyncio.timeout(30):
            assert isinstance(await good, Answer)
        with pytest.raises(DeadlineExceeded):
            await late


# Failures.


async def test_one_bad_input_fails_alone_and_its_neighbours_are_answered() -> None:
    async with running(Poisoned()) as device:
        outcomes = await asyncio.gather(*await device.submit_together(0, 1, 2, 255, 3, 4), return_exceptions=True)
        assert device.resident.is_healthy
    for value, outcome in zip((0, 1, 2, 255, 3, 4), outcomes, strict=True):
        if value == 255:
            assert isinstance(outcome, EncoderFailed)
        else:
            assert isinstance(outcome, Answer)
            np.testing.assert_allclose(outcome.row.pooled, alone(value), rtol=1e-6)


async def test_after_a_batch_of_failures_a_good_image_is_asked() -> None:
    encoder = Poisoned()
    async with running(encoder) as device:
        with pytest.raises(EncoderFailed, match="failed with RuntimeError"):
            await device.submit(255)
        assert device.resident.is_healthy
    assert encoder.batches == [1, 1, 1]  # the bad one; an image and a text
    assert len(encoder.threads) == 1


async def test_a_batch_in_which_anything_worked_costs_no_forward_more() -> None:
    encoder = Poisoned()
    async with running(encoder) as device:
        outcomes = await asyncio.gather(*await device.submit_together(255, 1), return_exceptions=True)
        assert device.resident.is_healthy
    assert [type(outcome) for outcome in outcomes] == [EncoderFailed, Answer]
    assert encoder.batches == [2, 1, 1]


async def test_a_batch_that_works_in_part_makes_a_model_healthy_again() -> None:
    encoder = Poisoned()
    async with running(encoder) as device:
        device.resident.is_healthy = False
        await asyncio.gather(*await device.submit_together(255, 1), return_exceptions=True)
        assert device.resident.is_healthy


async def test_a_model_that_fails_on_a_good_image_too_is_unhealthy_before_its_answer_until_it_works_again() -> None:
    def fail(batch: int) -> None:
        raise EncoderFailed("broken")

    encoder = FakeEncoder(before=fail)
    async with running(encoder) as device:
        with pytest.raises(EncoderFailed):
            await device.submit(1)
        assert not device.resident.is_healthy
        assert not await device.threads.call(device.resident.probe)
        encoder.before = lambda batch: None
        assert await device.threads.call(device.resident.probe)
        assert device.resident.is_healthy


# Calls.


async def test_the_error_of_a_call_is_its_caller_s_and_the_thread_lives_on() -> None:
    def fail() -> None:
        raise UndecodableImage("PNG", "cut off")

    async with running(FakeEncoder()) as device:
        with pytest.raises(UndecodableImage):
            await device.threads.call(fail)
        assert isinstance(await device.submit(1), Answer)


async def test_a_call_goes_ahead_of_what_waits() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with running(encoder) as device:
        first = await gate.shut_with_one_inside(lambda: device.submit(0))
        waiting = device.submit(1)
        call = asyncio.create_task(device.threads.call(lambda: list(encoder.batches)))
        await asyncio.sleep(0)  # the call is in the queue after the next turn of the loop
        gate.open.set()
        assert await call == [1]
        await asyncio.gather(first, waiting)


async def test_the_result_of_a_call_is_its_caller_s_alone() -> None:
    """It may be an encoder, whose memory is to be free once its caller has let it go."""
    async with running(FakeEncoder()) as device:
        encoder = weakref.ref(await device.threads.call(FakeEncoder))
        await device.threads.call(lambda: None)  # by now the thread is done with the other
        gc.collect()
        assert encoder() is None


# The end.


async def test_if_the_thread_ends_everyone_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    def end(batch: int) -> None:
        gate(batch)
        raise SystemExit

    async with running(FakeEncoder(before=end)) as device:
        inside = await gate.shut_with_one_inside(lambda: device.submit(0))
        waiting = [device.submit(1), *device.submit_set(2, 3), device.submit_made(4, pool=Later())]
        call = asyncio.create_task(device.threads.call(lambda: None))
        await asyncio.sleep(0)  # the call is in the queue after the next turn of the loop
        gate.open.set()
        for future in (inside, *waiting, call):
            with pytest.raises(DeviceLost):
                await future
        assert not device.threads.is_alive
        with pytest.raises(DeviceLost):
            device.submit(5)
        with pytest.raises(DeviceLost):
            device.submit_set(5)
        with pytest.raises(DeviceLost):
            device.submit_made(5, pool=Later())
        with pytest.raises(DeviceLost):
            await device.threads.call(lambda: None)
        assert device.threads.is_lost
    assert "the device thread has ended" in caplog.text


async def test_abandoning_fails_what_runs_what_waits_and_what_is_still_on_its_way() -> None:
    """An image that was being decoded when the drain deadline passed must not wait for its own."""
    gate = Gate()
    async with running(FakeEncoder(before=gate)) as device:
        inside = await gate.shut_with_one_inside(lambda: device.submit(0))
        waiting = device.submit(1)
        device.threads.abandon(ShuttingDown())
        for future in (inside, waiting):
            with pytest.raises(ShuttingDown):
                await future
        with pytest.raises(ShuttingDown):
            device.submit(2)
        assert device.threads.waiting(MODEL) == (0, 0.0)
        gate.open.set()


async def test_stopping_finishes_what_has_begun_and_fails_what_waits() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with running(encoder) as device:
        inside = await gate.shut_with_one_inside(lambda: device.submit(0))
        waiting = [device.submit(1), *device.submit_set(2, 3), device.submit_made(4, pool=Later())]
        stop = asyncio.create_task(device.threads.stop(timeout_s=30))
        await asyncio.sleep(0)  # told to stop after the next turn of the loop
        gate.open.set()
        assert await stop
        assert isinstance(await inside, Answer)
        for future in waiting:
            with pytest.raises(DeviceLost):
                await future
    assert encoder.batches == [1]


async def test_a_stuck_thread_is_reported_not_waited_for_and_nor_is_its_work() -> None:
    gate = Gate()
    async with running(FakeEncoder(before=gate)) as device:
        stuck = await gate.shut_with_one_inside(lambda: device.submit(0))
        behind = device.submit(1)
        assert not await device.threads.stop(timeout_s=0)
        for work in (stuck, behind):
            with pytest.raises(DeviceLost):
                await work
        gate.open.set()


async def test_threads_that_were_told_to_stop_are_stopped_again_at_once() -> None:
    async with running(FakeEncoder()) as device:
        assert await device.threads.stop(timeout_s=30)
        assert await device.threads.stop(timeout_s=0)
        assert not device.threads.is_lost
