"""The device thread and its futures. Time is a number that the test sets; order is a gate that forwards wait at."""

import asyncio
import gc
import threading
import weakref
from typing import TypeVar

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EncoderFailed, UndecodableImage
from encoders.contract.values import Encoded, Outputs, Pixels
from service.errors import DeadlineExceeded, DeviceLost, ShuttingDown
from service.scheduling.items import Answer
from service.scheduling.patience import Patience
from service.scheduling.resident import Resident
from tests.support.device_threads import NEVER, SHAPE, TEXT, Gate, Later, alone, image, running
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
    rows = encoder.encode_text(encoder.tokenize(["one", "two"]).ids)
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


async def test_what_the_thread_is_at_is_known() -> None:
    gate, now = Gate(), [100.0]
    async with running(FakeEncoder(before=gate), clock=lambda: now[0]) as device:
        assert device.threads.at_work() == []
        inside = await gate.shut_with_one_inside(lambda: device.submit(0))
        now[0] = 107.0
        [work] = device.threads.at_work()
        assert work.since == 100.0
        assert work.taken is not None
        assert work.taken.batch[0].item.future is inside
        gate.open.set()
        await inside
        await device.threads.call(lambda: None)
    assert device.threads.at_work() == []


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
    async with running(encoder, clock=lambda: now[0], patience=Patience()) as device:
        await device.submit(0)
        coming = device.submit_made(1, pool=pool)
        async with asyncio.timeout(30):
            await asyncio.gather(*device.submit_set(2, 3))
        pool.run()
        await coming
    assert encoder.batches == [1, 2, 1]


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
