"""Batches begun behind the one that runs, by an encoder that leaves its device at work until the test lets it end."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.encoder import Forward
from encoders.contract.errors import EncoderFailed
from encoders.contract.values import Encoded, Outputs, Pixels
from service.errors import DeadlineExceeded, DeviceLost, ShuttingDown
from service.scheduling.items import Answer
from service.scheduling.resident import Resident
from tests.support.device_threads import AtWork, alone, running
from tests.support.shapes import image_shape

pytestmark = pytest.mark.anyio
POISON = 255


class Card(FakeEncoder):
    """A batch that was begun ends when it is waited for; if its first image is held, not before the test lets it.

    log: the steps, in order, and the values of the images.
    poison: what a batch with POISON in it raises in the step `fails_in`.
    """

    def __init__(self, *, fails_in: str = "finish", poison: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.log: list[tuple[str, list[int]]] = []
        self.fails_in = fails_in
        self.poison = poison
        self.on_begin: Callable[[], None] = lambda: None
        self.held: dict[int, threading.Event] = {}
        self.reached: dict[int, threading.Event] = {}

    def hold(self, *values: int) -> None:
        for value in values:
            self.held[value], self.reached[value] = threading.Event(), threading.Event()

    def release(self, value: int) -> None:
        self.held[value].set()

    async def is_waited_for(self, value: int) -> None:
        assert await asyncio.to_thread(self.reached[value].wait, 30)

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        values = [int(row[0, 0, 0]) for row in pixels]
        self.on_begin()
        self.step("begin", values)

        def finish() -> Encoded:
            if values[0] in self.held:
                self.reached[values[0]].set()
                assert self.held[values[0]].wait(30), "the test never let it end"
            self.step("finish", values)
            return self.encode(pixels, outputs)

        return AtWork(finish)

    def step(self, name: str, values: list[int]) -> None:
        self.log.append((name, values))
        if name == self.fails_in and POISON in values:
            raise self.poison


async def test_the_next_batch_is_begun_behind_the_one_that_runs_and_two_at_most() -> None:
    card = Card()
    async with running(card, ceiling=2) as device:
        await asyncio.gather(*await device.submit_together(0, 1, 2, 3, 4, 5))
    assert card.log == [
        ("begin", [0, 1]),
        ("begin", [2, 3]),
        ("finish", [0, 1]),
        ("begin", [4, 5]),
        ("finish", [2, 3]),
        ("finish", [4, 5]),
    ]


async def test_everyone_is_given_their_own_row() -> None:
    async with running(Card(), ceiling=2) as device:
        answers = await asyncio.gather(*await device.submit_together(*range(7)))
    for value, answer in enumerate(answers):
        np.testing.assert_allclose(answer.row.pooled, alone(value), rtol=1e-6)


async def test_a_smaller_batch_is_left_to_grow() -> None:
    card = Card()
    async with running(card, ceiling=3) as device:
        await asyncio.gather(*await device.submit_together(0, 1, 2, 3, 4))
    assert card.log == [("begin", [0, 1, 2]), ("finish", [0, 1, 2]), ("begin", [3, 4]), ("finish", [3, 4])]


async def test_a_set_is_begun_behind_others_and_others_behind_it_and_nobody_is_mixed() -> None:
    card = Card()
    async with running(card) as device:
        async with device.occupied():
            futures = [*device.submit_set(0, 1), device.submit(2), device.submit(3), *device.submit_set(4, 5)]
        await asyncio.gather(*futures)
    assert [values for step, values in card.log if step == "begin"] == [[0, 1], [2, 3], [4, 5]]
    assert card.log.index(("begin", [2, 3])) < card.log.index(("finish", [0, 1]))
    assert card.log.index(("begin", [4, 5])) < card.log.index(("finish", [2, 3]))


async def test_a_batch_of_another_encoder_may_be_begun_behind() -> None:
    card, other = Card(), Card()
    other.log = card.log
    async with running(card, ceiling=1) as device:
        second = replace(device, resident=Resident(other))
        async with device.occupied():
            futures = [device.submit(0), second.submit(1, image_shape())]
        await asyncio.gather(*futures)
    assert card.log == [("begin", [0]), ("begin", [1]), ("finish", [0]), ("finish", [1])]
    assert (card.batches, other.batches) == ([1], [1])


async def test_a_shape_is_not_charged_for_the_forward_that_it_was_begun_behind() -> None:
    """The second shape takes no time, so it goes on, though items of the first are older."""
    now = [0.0]

    class LongForZero(Card):
        def step(self, name: str, values: list[int]) -> None:
            super().step(name, values)
            now[0] += (name, values) == ("finish", [0])

    card, shapes = LongForZero(), (image_shape(), image_shape())
    async with running(card, ceiling=1, clock=lambda: now[0]) as device:
        async with device.occupied():
            futures = [device.submit(value, shapes[value % 2]) for value in range(8)]
        await asyncio.gather(*futures)
    assert [value for name, (value,) in card.log if name == "begin"] == [0, 1, 3, 5, 7, 2, 4, 6]


async def test_rows_are_delivered_while_the_batch_behind_still_runs() -> None:
    card = Card()
    card.hold(1)
    async with running(card, ceiling=1) as device:
        first, second = await device.submit_together(0, 1)
        await first
        assert not second.done()
        card.release(1)
        await second


async def test_an_encoder_that_is_done_at_once_has_its_rows_delivered_before_the_next_batch() -> None:
    counted_before: list[int] = []
    encoder = FakeEncoder()
    async with running(encoder, ceiling=2) as device:
        encoder.before = lambda batch: counted_before.append(len(device.metrics.forwards))
        await asyncio.gather(*await device.submit_together(*range(6)))
    assert counted_before == [0, 1, 2]


async def test_texts_wait_until_nothing_runs() -> None:
    card = Card()
    card.before = lambda batch: card.log.append(("encode", [batch]))
    async with running(card, ceiling=1) as device:
        async with device.occupied():
            first, text = device.submit(0), device.submit_text("a")
        await asyncio.gather(first, text)
    assert card.log == [("begin", [0]), ("finish", [0]), ("encode", [1]), ("encode", [1])]


async def test_who_is_too_late_to_be_begun_behind_is_told() -> None:
    now = [0.0]
    card = Card()

    def pass_time() -> None:
        now[0] = 10.0

    async with running(card, ceiling=1, clock=lambda: now[0]) as device:
        card.on_begin = pass_time
        first, late = await device.submit_together(0, 1, deadline=10.0)
        await first
        with pytest.raises(DeadlineExceeded):
            await late
    assert card.log == [("begin", [0]), ("finish", [0])]


@pytest.mark.parametrize("step", ["begin", "finish"])
@pytest.mark.parametrize("bad", [1, 5], ids=["in the one that runs", "in the one behind"])
async def test_one_bad_input_fails_alone_in_whichever_step_and_batch(step: str, bad: int) -> None:
    card = Card(fails_in=step)
    values = [POISON if place == bad else place for place in range(8)]
    async with running(card, ceiling=4) as device:
        outcomes = await asyncio.gather(*await device.submit_together(*values), return_exceptions=True)
        assert device.resident.is_healthy
    for place, outcome in enumerate(outcomes):
        if place == bad:
            assert isinstance(outcome, EncoderFailed)
            continue
        assert isinstance(outcome, Answer)
        np.testing.assert_allclose(outcome.row.pooled, alone(place), rtol=1e-6)


async def test_a_call_runs_when_all_that_was_begun_is_finished_and_nothing_more_is_begun_before() -> None:
    card = Card()
    card.hold(0)
    async with running(card, ceiling=1) as device:
        futures = await device.submit_together(0, 1, 2)
        await card.is_waited_for(0)
        call = asyncio.create_task(device.threads.call(lambda: list(card.log)))
        await asyncio.sleep(0)  # the call is in the queue after the next turn of the loop
        card.release(0)
        assert await call == [("begin", [0]), ("begin", [1]), ("finish", [0]), ("finish", [1])]
        await asyncio.gather(*futures)


async def test_stopping_answers_what_was_begun_and_fails_what_waits() -> None:
    card = Card()
    card.hold(0)
    async with running(card, ceiling=1) as device:
        *begun, waiting = await device.submit_together(0, 1, 2)
        await card.is_waited_for(0)
        stop = asyncio.create_task(device.threads.stop(timeout_s=30))
        await asyncio.sleep(0)  # told to stop after the next turn of the loop
        card.release(0)
        assert await stop
        assert [type(answer) for answer in await asyncio.gather(*begun)] == [Answer, Answer]
        with pytest.raises(DeviceLost):
            await waiting


async def test_abandoning_fails_both_that_were_begun_and_what_waits() -> None:
    card = Card()
    card.hold(0)
    async with running(card, ceiling=1) as device:
        futures = await device.submit_together(0, 1, 2)
        await card.is_waited_for(0)
        device.threads.abandon(ShuttingDown())
        for future in futures:
            with pytest.raises(ShuttingDown):
                await future
        card.release(0)
    assert card.log == [("begin", [0]), ("begin", [1]), ("finish", [0]), ("finish", [1])]


@pytest.mark.parametrize("step", ["begin", "finish"])
async def test_if_the_thread_ends_both_that_were_begun_are_told(step: str, caplog: pytest.LogCaptureFixture) -> None:
    card = Card(fails_in=step, poison=SystemExit)
    values = (0, POISON) if step == "begin" else (POISON, 1)
    async with running(card, ceiling=1) as device:
        for future in await device.submit_together(*values):
            with pytest.raises(DeviceLost):
                await future
    assert "the device thread has ended" in caplog.text


async def test_the_thread_is_not_taken_for_stuck_because_batches_follow_each_other() -> None:
    now = [0.0]
    card = Card()
    card.hold(0, 1)
    async with running(card, ceiling=1, clock=lambda: now[0]) as device:
        futures = await device.submit_together(0, 1)
        await card.is_waited_for(0)
        now[0] = 7.0
        assert [work.since for work in device.threads.at_work()] == [0.0]
        card.release(0)
        await card.is_waited_for(1)
        assert [work.since for work in device.threads.at_work()] == [7.0]
        card.release(1)
        await asyncio.gather(*futures)


async def test_a_batch_s_seconds_begin_when_it_is_begun_though_behind_another() -> None:
    now = [0.0]
    card = Card()
    card.hold(0, 1)
    async with running(card, ceiling=1, clock=lambda: now[0]) as device:
        futures = await device.submit_together(0, 1)
        await card.is_waited_for(0)
        now[0] = 3.0
        card.release(0)
        await card.is_waited_for(1)
        now[0] = 5.0
        card.release(1)
        answers = await asyncio.gather(*futures)
    assert [answer.forward_s for answer in answers] == [3.0, 5.0]
    assert [forward.forward_s for forward in device.metrics.forwards] == [3.0, 5.0]
