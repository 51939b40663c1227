"""Batches begun behind the one that runs, by an encoder that leaves its device at work until the test lets it end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.errors import EncoderFailed
from encoders.contract.values import Encoded, Outputs, Pixels
from service.errors import DeadlineExceeded, DeviceLost, ShuttingDown
from service.scheduling.device_threads import Answer, Batcher, Report
from service.scheduling.queue import TextKey
from tests.service.scheduling.test_batcher import KEY, MODEL, NEVER, image, running

pytestmark = pytest.mark.anyio
POISON = 255


class Card(FakeEncoder):
    """What was begun ends when it is waited for; where its first image is held, not before the test lets it.

    log: what was done, in order, and the values of the images.
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

    def begin(self, pixels: Pixels, outputs: Outputs) -> Encoded | Callable[[], Encoded]:
        values = [int(row[0, 0, 0]) for row in pixels]
        self.on_begin()
        self.step("begin", values)

        def finish() -> Encoded:
            if values[0] in self.held:
                self.reached[values[0]].set()
                assert self.held[values[0]].wait(30), "the test never let it end"
            self.step("finish", values)
            return self.encode(pixels, outputs)

        return finish

    def step(self, name: str, values: list[int]) -> None:
        self.log.append((name, values))
        if name == self.fails_in and POISON in values:
            raise self.poison


@asynccontextmanager
async def busy(batcher: Batcher) -> AsyncIterator[None]:
    """What is submitted inside waits together: the device thread is in a call meanwhile."""
    release = threading.Event()
    call = asyncio.create_task(batcher.call(release.wait))
    await asyncio.sleep(0)  # the call is in the queue after the next turn of the loop
    yield
    release.set()
    await call


async def submit_together(batcher: Batcher, *values: int, deadline: float = NEVER) -> list[asyncio.Future[Any]]:
    async with busy(batcher):
        return [batcher.submit(KEY, image(value), deadline=deadline) for value in values]


async def test_the_next_batch_is_begun_behind_the_one_that_runs_and_two_at_most() -> None:
    card = Card()
    async with running(card, ceiling=2) as batcher:
        await asyncio.gather(*await submit_together(batcher, 0, 1, 2, 3, 4, 5))
    assert card.log == [
        ("begin", [0, 1]),
        ("begin", [2, 3]),
        ("finish", [0, 1]),
        ("begin", [4, 5]),
        ("finish", [2, 3]),
        ("finish", [4, 5]),
    ]


async def test_everyone_is_given_their_own_row() -> None:
    async with running(Card(), ceiling=2) as batcher:
        answers = await asyncio.gather(*await submit_together(batcher, *range(7)))
    for value, answer in enumerate(answers):
        alone = FakeEncoder().encode(image(value)[None], KEY.outputs).row(0)
        np.testing.assert_allclose(np.asarray(answer.row.pooled), np.asarray(alone.pooled), rtol=1e-6)


async def test_a_smaller_batch_is_left_to_grow() -> None:
    card = Card()
    async with running(card, ceiling=3) as batcher:
        await asyncio.gather(*await submit_together(batcher, 0, 1, 2, 3, 4))
    assert card.log == [("begin", [0, 1, 2]), ("finish", [0, 1, 2]), ("begin", [3, 4]), ("finish", [3, 4])]


async def test_rows_are_delivered_while_the_batch_behind_still_runs() -> None:
    card = Card()
    card.hold(1)
    async with running(card, ceiling=1) as batcher:
        first, second = await submit_together(batcher, 0, 1)
        await first
        assert not second.done()
        card.release(1)
        await second


async def test_an_encoder_that_is_done_at_once_has_its_rows_delivered_before_the_next_batch() -> None:
    reports: list[Report] = []
    delivered_before: list[int] = []
    encoder = FakeEncoder(before=lambda batch: delivered_before.append(len(reports)))
    async with running(encoder, ceiling=2, reports=reports) as batcher:
        delivered_before.clear()
        await asyncio.gather(*await submit_together(batcher, *range(6)))
    assert delivered_before == [0, 1, 2]


async def test_texts_wait_until_nothing_runs() -> None:
    card = Card()
    card.before = lambda batch: card.log.append(("encode", [batch]))
    async with running(card, ceiling=1) as batcher:
        card.log.clear()
        async with busy(batcher):
            first = batcher.submit(KEY, image(0), deadline=NEVER)
            text = batcher.submit(TextKey(MODEL), card.tokenize(["a"])[0], deadline=NEVER)
        await asyncio.gather(first, text)
    assert card.log == [("begin", [0]), ("finish", [0]), ("encode", [1]), ("encode", [1])]


async def test_who_is_too_late_to_be_begun_behind_is_told() -> None:
    now = [0.0]
    card = Card()

    def pass_time() -> None:
        now[0] = 10.0

    async with running(card, ceiling=1, clock=lambda: now[0]) as batcher:
        card.on_begin = pass_time
        first, late = await submit_together(batcher, 0, 1, deadline=10.0)
        await first
        with pytest.raises(DeadlineExceeded):
            await late
    assert card.log == [("begin", [0]), ("finish", [0])]


@pytest.mark.parametrize("step", ["begin", "finish"])
@pytest.mark.parametrize("bad", [1, 5], ids=["in the one that runs", "in the one behind"])
async def test_one_bad_input_fails_alone_in_whichever_step_and_batch(step: str, bad: int) -> None:
    card = Card(fails_in=step)
    values = [POISON if place == bad else place for place in range(8)]
    async with running(card, ceiling=4) as batcher:
        outcomes = await asyncio.gather(*await submit_together(batcher, *values), return_exceptions=True)
        assert batcher.is_healthy(MODEL)
    for place, outcome in enumerate(outcomes):
        if place == bad:
            assert isinstance(outcome, EncoderFailed)
            continue
        assert isinstance(outcome, Answer)
        alone = FakeEncoder().encode(image(place)[None], KEY.outputs).row(0)
        np.testing.assert_allclose(np.asarray(outcome.row.pooled), np.asarray(alone.pooled), rtol=1e-6)


async def test_a_call_runs_when_all_that_was_begun_is_finished_and_nothing_more_is_begun_before() -> None:
    card = Card()
    card.hold(0)
    async with running(card, ceiling=1) as batcher:
        futures = await submit_together(batcher, 0, 1, 2)
        await card.is_waited_for(0)
        call = asyncio.create_task(batcher.call(lambda: list(card.log)))
        await asyncio.sleep(0)  # the call is in the queue after the next turn of the loop
        card.release(0)
        assert await call == [("begin", [0]), ("begin", [1]), ("finish", [0]), ("finish", [1])]
        await asyncio.gather(*futures)


async def test_an_encoder_is_removed_when_all_that_was_begun_is_finished() -> None:
    card = Card()
    card.hold(0)
    async with running(card, ceiling=1) as batcher:
        futures = await submit_together(batcher, 0, 1)
        await card.is_waited_for(0)
        removal = asyncio.create_task(batcher.remove(MODEL))
        await asyncio.sleep(0)  # the call is in the queue after the next turn of the loop
        card.release(0)
        await removal
        assert [type(answer) for answer in await asyncio.gather(*futures)] == [Answer, Answer]


async def test_stopping_answers_what_was_begun_and_fails_what_waits() -> None:
    card = Card()
    card.hold(0)
    async with running(card, ceiling=1) as batcher:
        *begun, waiting = await submit_together(batcher, 0, 1, 2)
        await card.is_waited_for(0)
        stop = asyncio.create_task(batcher.stop(timeout_s=30))
        await asyncio.sleep(0)  # told to stop after the next turn of the loop
        card.release(0)
        assert await stop
        assert [type(answer) for answer in await asyncio.gather(*begun)] == [Answer, Answer]
        with pytest.raises(DeviceLost):
            await waiting


async def test_abandoning_fails_both_that_were_begun_and_what_waits() -> None:
    card = Card()
    card.hold(0)
    async with running(card, ceiling=1) as batcher:
        futures = await submit_together(batcher, 0, 1, 2)
        await card.is_waited_for(0)
        batcher.abandon(ShuttingDown())
        for future in futures:
            with pytest.raises(ShuttingDown):
                await future
        card.release(0)
    assert card.log == [("begin", [0]), ("begin", [1]), ("finish", [0]), ("finish", [1])]


@pytest.mark.parametrize("step", ["begin", "finish"])
async def test_if_the_thread_ends_both_that_were_begun_are_told(step: str, caplog: pytest.LogCaptureFixture) -> None:
    card = Card(fails_in=step, poison=SystemExit)
    values = (0, POISON) if step == "begin" else (POISON, 1)
    async with running(card, ceiling=1) as batcher:
        for future in await submit_together(batcher, *values):
            with pytest.raises(DeviceLost):
                await future
    assert "the device thread has ended" in caplog.text


async def test_the_thread_is_not_taken_for_stuck_because_batches_follow_each_other() -> None:
    now = [0.0]
    card = Card()
    card.hold(0, 1)
    async with running(card, ceiling=1, clock=lambda: now[0]) as batcher:
        futures = await submit_together(batcher, 0, 1)
        await card.is_waited_for(0)
        now[0] = 7.0
        assert batcher.busy_s == 7.0
        card.release(0)
        await card.is_waited_for(1)
        assert batcher.busy_s == 0.0
        card.release(1)
        await asyncio.gather(*futures)


async def test_a_batch_s_seconds_begin_when_it_is_begun_though_behind_another() -> None:
    now = [0.0]
    card = Card()
    card.hold(0, 1)
    reports: list[Report] = []
    async with running(card, ceiling=1, clock=lambda: now[0], reports=reports) as batcher:
        futures = await submit_together(batcher, 0, 1)
        await card.is_waited_for(0)
        now[0] = 3.0
        card.release(0)
        await card.is_waited_for(1)
        now[0] = 5.0
        card.release(1)
        answers = await asyncio.gather(*futures)
    assert [answer.forward_s for answer in answers] == [report.forward_s for report in reports] == [3.0, 5.0]
