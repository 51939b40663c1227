"""The device thread and its futures. Time is a number the test sets; order is a gate the fake encoder waits at."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.errors import EncoderFailed, EncoderIdError, NonFiniteOutput, UndecodableImage
from encoders.contract.values import Encoded, ImageSize, Outputs, Pixels, TokenKind
from service.errors import DeadlineExceeded, DeviceLost, ShuttingDown
from service.scheduling.batch import is_finite
from service.scheduling.device_threads import Answer, Batcher, Report
from service.scheduling.queue import ImageKey, TextKey

pytestmark = pytest.mark.anyio
MODEL = "fake:vit"
KEY = ImageKey(MODEL, ImageSize(8, 8), Outputs(pooled=True))
NEVER = float("inf")


def image(value: int, side: int = 8) -> Pixels:
    return np.full((side, side, 3), value, dtype=np.uint8)


class Gate:
    """Holds forwards while closed; `entered` is set when one waits at it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def __call__(self, batch: int) -> None:
        self.entered.set()
        assert self.open.wait(30), "the test never opened the gate"

    async def shut_with_one_inside(self, submit: Callable[[], asyncio.Future[Any]]) -> asyncio.Future[Any]:
        """Close, submit one item, and wait until the device thread holds it."""
        self.open.clear()
        self.entered.clear()
        future = submit()
        assert await asyncio.to_thread(self.entered.wait, 30)
        return future


class Poisoned(FakeEncoder):
    """Fails, as a device might, on a batch with a pixel of 255 in it."""

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        encoded = super().encode(pixels, outputs)
        if (pixels == 255).any():
            raise RuntimeError("device-side assert")
        return encoded


@asynccontextmanager
async def running(
    encoder: FakeEncoder,
    *,
    ceiling: int = 8,
    clock: Callable[[], float] = time.monotonic,
    reports: list[Report] | None = None,
    on_lost: Callable[[], None] = lambda: None,
    shares_cores: bool = False,
) -> AsyncIterator[Batcher]:
    observe = (lambda report: None) if reports is None else reports.append
    batcher = Batcher(
        ceiling=lambda key: ceiling, clock=clock, observe=observe, on_lost=on_lost, shares_cores=shares_cores
    )
    batcher.start()
    await batcher.add(encoder.spec.id, lambda: encoder)
    encoder.batches.clear()
    try:
        yield batcher
    finally:
        await batcher.stop(timeout_s=30)


async def test_a_row_is_what_the_image_alone_would_give() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as batcher:
        answers = await asyncio.gather(*(batcher.submit(KEY, image(v), deadline=NEVER) for v in range(10)))
    for value, answer in enumerate(answers):
        alone = encoder.encode(image(value)[None], KEY.outputs).row(0)
        assert answer.row.pooled is not None
        assert alone.pooled is not None
        np.testing.assert_allclose(answer.row.pooled, alone.pooled, rtol=1e-6)


async def test_what_arrives_during_a_forward_shares_the_next() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with running(encoder, ceiling=3) as batcher:
        first = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        others = [batcher.submit(KEY, image(v), deadline=NEVER) for v in range(1, 6)]
        gate.open.set()
        await asyncio.gather(first, *others)
    assert encoder.batches == [1, 3, 2]


async def test_all_forwards_run_on_one_thread_that_is_not_the_loop() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as batcher:
        await batcher.submit(KEY, image(1), deadline=NEVER)
        await batcher.submit(TextKey(MODEL), encoder.tokenize(["a"])[0], deadline=NEVER)
    assert len(encoder.threads) == 1
    assert threading.get_ident() not in encoder.threads


async def test_texts_give_their_own_rows() -> None:
    encoder = FakeEncoder()
    ids = encoder.tokenize(["one", "two"])
    async with running(encoder) as batcher:
        answers = await asyncio.gather(*(batcher.submit(TextKey(MODEL), row, deadline=NEVER) for row in ids))
    np.testing.assert_allclose(np.stack([answer.row for answer in answers]), encoder.encode_text(ids))


class Later(Executor):
    """A pool whose work the test runs."""

    def __init__(self) -> None:
        self.work: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.work.append(partial(fn, *args, **kwargs))

    def run(self) -> None:
        while self.work:
            self.step()

    def step(self) -> None:
        """Only what has waited longest."""
        self.work.pop(0)()


async def test_what_is_made_on_a_pool_joins_the_queue_from_there() -> None:
    encoder = FakeEncoder()
    with ThreadPoolExecutor(2) as pool:
        async with running(encoder) as batcher:
            futures = [
                batcher.submit_made(KEY, partial(image, value), pool=pool, deadline=NEVER) for value in range(10)
            ]
            answers = await asyncio.gather(*futures)
    for value, answer in enumerate(answers):
        alone = encoder.encode(image(value)[None], KEY.outputs).row(0)
        np.testing.assert_allclose(np.asarray(answer.row.pooled), np.asarray(alone.pooled), rtol=1e-6)


async def test_what_cannot_be_made_is_its_own_error_only() -> None:
    def broken() -> Pixels:
        raise UndecodableImage("PNG", "cut off")

    encoder = FakeEncoder()
    with ThreadPoolExecutor(1) as pool:
        async with running(encoder) as batcher:
            bad = batcher.submit_made(KEY, broken, pool=pool, deadline=NEVER)
            good = batcher.submit_made(KEY, partial(image, 1), pool=pool, deadline=NEVER)
            with pytest.raises(UndecodableImage):
                await bad
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

    async with running(encoder) as batcher:
        first = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        gone = batcher.submit_made(KEY, make, pool=pool, deadline=NEVER)
        if stage == "before it is made":
            gone.cancel()
        pool.run()
        gone.cancel()
        await asyncio.sleep(0)  # done-callbacks run on the next turn of the loop
        gate.open.set()
        await first
    assert made == ([] if stage == "before it is made" else [1])
    assert encoder.batches == [1]


async def test_what_is_being_made_is_abandoned_with_the_rest() -> None:
    pool, encoder = Later(), FakeEncoder()
    async with running(encoder) as batcher:
        future = batcher.submit_made(KEY, partial(image, 1), pool=pool, deadline=NEVER)
        batcher.abandon(ShuttingDown())
        with pytest.raises(ShuttingDown):
            await future
        pool.run()
    assert encoder.batches == []


@pytest.mark.parametrize("last", ["is made", "is broken", "is cancelled", "is abandoned by its caller while made"])
@pytest.mark.parametrize("shares_cores", [True, False])
async def test_where_cores_are_shared_a_batch_waits_for_what_is_being_made(shares_cores: bool, last: str) -> None:
    """The clock runs only in forwards, ten seconds in each: patience is not what ends the wait."""
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
    async with running(encoder, clock=lambda: now[0], shares_cores=shares_cores) as batcher:
        await batcher.submit(KEY, image(0), deadline=NEVER)
        first, second = (batcher.submit_made(KEY, partial(image, value), pool=pool, deadline=NEVER) for value in (1, 2))
        third = batcher.submit_made(KEY, make, pool=pool, deadline=NEVER)
        for future in (first, second):
            pool.step()
            if not shares_cores:
                await future
            await batcher.call(lambda: None)  # the thread has been round: it could have taken what is there
            await batcher.call(lambda: None)
        assert encoder.batches == ([1] if shares_cores else [1, 1, 1])
        if last == "is cancelled":
            third.cancel()
        pool.step()
        answers = await asyncio.gather(first, second, third, return_exceptions=True)
    together = 3 if last == "is made" else 2
    assert sum(isinstance(answer, Answer) for answer in answers) == together
    if shares_cores:
        assert encoder.batches == [1, together]


async def test_nobody_waits_with_an_item_that_has_left() -> None:
    """The one that a batch waited with leaves: another key's, that waits for nothing, runs without its patience."""
    now, pool = [0.0], Later()

    def tick(batch: int) -> None:
        now[0] += 10_000

    other = replace(KEY, outputs=Outputs(tokens=TokenKind.HIDDEN))
    async with running(FakeEncoder(before=tick), clock=lambda: now[0], shares_cores=True) as batcher:
        await batcher.submit(KEY, image(0), deadline=NEVER)
        leaves, never_made = (
            batcher.submit_made(KEY, partial(image, value), pool=pool, deadline=NEVER) for value in (1, 2)
        )
        pool.step()
        stays = batcher.submit(other, image(3), deadline=NEVER)
        await batcher.call(lambda: None)
        leaves.cancel()
        async with asyncio.timeout(30):
            assert (await stays).row.tokens is not None
        never_made.cancel()


async def test_a_cancelled_item_is_not_run() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with running(encoder) as batcher:
        first = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        kept, gone = (batcher.submit(KEY, image(v), deadline=NEVER) for v in (1, 2))
        gone.cancel()
        await asyncio.sleep(0)  # done-callbacks run on the next turn of the loop
        gate.open.set()
        await asyncio.gather(first, kept)
    assert encoder.batches == [1, 1]


async def test_cancelling_what_already_runs_harms_nobody() -> None:
    gate = Gate()
    async with running(FakeEncoder(before=gate)) as batcher:
        first = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        first.cancel()
        gate.open.set()
        assert isinstance(await batcher.submit(KEY, image(1), deadline=NEVER), Answer)


async def test_an_item_past_its_deadline_is_not_run() -> None:
    gate, now = Gate(), [0.0]
    encoder = FakeEncoder(before=gate)
    async with running(encoder, clock=lambda: now[0]) as batcher:
        first = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=10.0))
        late = batcher.submit(KEY, image(1), deadline=10.0)
        now[0] = 10.0
        gate.open.set()
        await first
        with pytest.raises(DeadlineExceeded):
            await late
    assert encoder.batches == [1]


async def test_one_bad_input_fails_alone_and_its_neighbours_are_answered() -> None:
    gate = Gate()
    encoder = Poisoned(before=gate)
    async with running(encoder) as batcher:
        first = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        others = [batcher.submit(KEY, image(v), deadline=NEVER) for v in (1, 2, 255, 3, 4)]
        gate.open.set()
        outcomes = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Answer, Answer, Answer, EncoderFailed, Answer, Answer]
        for value, outcome in zip((0, 1, 2, 255, 3, 4), outcomes, strict=True):
            if isinstance(outcome, Answer):
                assert outcome.row.pooled is not None
                alone = FakeEncoder().encode(image(value)[None], KEY.outputs).row(0)
                np.testing.assert_allclose(outcome.row.pooled, np.asarray(alone.pooled), rtol=1e-6)
        assert batcher.is_healthy(MODEL)


async def test_a_foreign_exception_becomes_encoder_failed_without_its_message() -> None:
    async with running(Poisoned()) as batcher:
        with pytest.raises(EncoderFailed, match="failed with RuntimeError") as caught:
            await batcher.submit(KEY, image(255), deadline=NEVER)
        assert batcher.is_healthy(MODEL)  # a known good image was asked, and works
    assert "device-side" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


async def test_a_failure_keeps_no_frame_of_the_forward_alive() -> None:
    """A traceback's frames hold the batch's tensors; on a full card that would keep the retry from fitting."""

    def fail(batch: int) -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise EncoderFailed("out of memory") from error

    encoder = FakeEncoder()
    async with running(encoder) as batcher:
        encoder.before = fail
        (outcome,) = await asyncio.gather(batcher.submit(KEY, image(1), deadline=NEVER), return_exceptions=True)
    assert isinstance(outcome, EncoderFailed)
    assert outcome.__cause__ is not None
    assert outcome.__cause__.__traceback__ is None


async def test_a_wrong_number_of_rows_is_a_failure_of_the_encoder() -> None:
    encoder = FakeEncoder()
    async with running(encoder) as batcher:
        encoder.after = lambda encoded: replace(encoded, pooled=np.zeros((5, 6), np.float32))
        with pytest.raises(EncoderFailed, match="5 rows for 1"):
            await batcher.submit(KEY, image(1), deadline=NEVER)


async def test_a_model_that_fails_on_a_good_image_too_is_unhealthy_until_it_works_again() -> None:
    encoder = FakeEncoder()

    def fail(batch: int) -> None:
        raise EncoderFailed("broken")

    async with running(encoder) as batcher:
        encoder.before = fail
        with pytest.raises(EncoderFailed):
            await batcher.submit(KEY, image(1), deadline=NEVER)
        assert not batcher.is_healthy(MODEL)
        assert not await batcher.probe(MODEL)
        encoder.before = lambda batch: None
        assert await batcher.probe(MODEL)
        assert batcher.is_healthy(MODEL)


async def test_if_the_thread_ends_everyone_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    gate, lost = Gate(), threading.Event()

    def end(batch: int) -> None:
        gate(batch)
        raise SystemExit

    encoder = FakeEncoder()
    async with running(encoder, on_lost=lost.set) as batcher:
        encoder.before = end
        inside = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        waiting = batcher.submit(KEY, image(1), deadline=NEVER)
        gate.open.set()
        for future in (inside, waiting):
            with pytest.raises(DeviceLost):
                await future
        assert not batcher.is_alive
        assert lost.is_set()
        with pytest.raises(DeviceLost):
            batcher.submit(KEY, image(2), deadline=NEVER)
    assert "the device thread has ended" in caplog.text


async def test_abandoning_fails_what_runs_what_waits_and_what_is_still_on_its_way() -> None:
    """An image that was being decoded when the drain deadline passed must not wait for its own."""
    gate = Gate()
    async with running(FakeEncoder(before=gate)) as batcher:
        inside = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        waiting = batcher.submit(KEY, image(1), deadline=NEVER)
        batcher.abandon(ShuttingDown())
        for future in (inside, waiting):
            with pytest.raises(ShuttingDown):
                await future
        with pytest.raises(ShuttingDown):
            batcher.submit(KEY, image(2), deadline=NEVER)
        gate.open.set()


async def test_a_stuck_thread_is_reported_not_waited_for() -> None:
    gate = Gate()
    async with running(FakeEncoder(before=gate)) as batcher:
        stuck = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        assert not await batcher.stop(timeout_s=0)
        gate.open.set()
        await stuck


async def test_how_long_the_thread_is_at_it_is_known() -> None:
    gate, now = Gate(), [100.0]
    async with running(FakeEncoder(before=gate), clock=lambda: now[0]) as batcher:
        assert batcher.busy_s == 0
        inside = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        now[0] = 107.0
        assert batcher.busy_s == 7.0
        gate.open.set()
        await inside


async def test_an_encoder_that_fails_its_first_forward_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    nan = FakeEncoder(after=lambda encoded: replace(encoded, pooled=np.full((1, 6), np.nan, np.float32)))
    with pytest.raises(NonFiniteOutput):
        async with running(nan):
            pass


async def test_an_encoder_under_another_name_is_not_taken() -> None:
    batcher = Batcher(ceiling=lambda key: 1, clock=time.monotonic)
    batcher.start()
    with pytest.raises(EncoderIdError, match="calls itself 'fake:vit'"):
        await batcher.add("fake:other", FakeEncoder)
    await batcher.stop(timeout_s=30)


async def test_a_batch_is_reported_once_with_its_waits() -> None:
    gate = Gate()
    reports: list[Report] = []
    async with running(FakeEncoder(before=gate), reports=reports) as batcher:
        first = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        others = [batcher.submit(KEY, image(v), deadline=NEVER) for v in (1, 2)]
        gate.open.set()
        await asyncio.gather(first, *others)
    assert [(report.key, report.items, len(report.queue_s)) for report in reports] == [(KEY, 1, 1), (KEY, 2, 2)]


async def test_the_snapshot_counts_what_waits_and_how_long() -> None:
    gate, now = Gate(), [100.0]
    async with running(FakeEncoder(before=gate), clock=lambda: now[0]) as batcher:
        first = await gate.shut_with_one_inside(lambda: batcher.submit(KEY, image(0), deadline=NEVER))
        waiting = batcher.submit(KEY, image(1), deadline=NEVER)
        now[0] = 103.0
        assert batcher.snapshot(MODEL) == (1, 3.0)
        gate.open.set()
        await asyncio.gather(first, waiting)
        assert batcher.snapshot(MODEL) == (0, 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_finite_is_told_from_nan_and_infinity(dtype: str) -> None:
    values = np.full((4, 5), 60000, dtype=dtype)
    assert is_finite(values)
    for bad in (np.nan, np.inf, -np.inf):
        values[2, 2] = bad
        assert not is_finite(values)


def test_large_finite_values_are_finite() -> None:
    assert is_finite(np.full(10, 3e38, dtype=np.float32))
