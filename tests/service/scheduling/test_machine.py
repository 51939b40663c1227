"""The batcher under random submits, cancels, poison, time, held and released forwards, and drains.

The encoder does its work at once, as on a CPU with one lane or two, or leaves its device at it, as on a GPU.

Invariants: every submit ends exactly once, and as it should; no batch is above its ceiling or of two keys; no more than
two are begun at once; what must run alone does; within a key first in is first run; a failure touches only the items
that cause it; draining leaves nothing.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from encoders.adapters.fake import FakeEncoder
from encoders.contract.errors import EncoderFailed
from encoders.contract.values import Encoded, ImageSize, Outputs, Pixels
from service.errors import DeadlineExceeded, ShuttingDown
from service.scheduling.device_threads import Answer, Batcher
from service.scheduling.queue import BatchKey, ImageKey

MODEL = "fake:vit"
KEYS = [ImageKey(MODEL, ImageSize(8 * n, 8), Outputs(pooled=True)) for n in (1, 2, 3)]
CEILINGS: dict[BatchKey, int] = {KEYS[0]: 1, KEYS[1]: 3, KEYS[2]: 5}
ALONE = KEYS[0]
"""Where there are lanes."""


class Recorder(FakeEncoder):
    """Writes down which items each forward had: an item's number is in its pixels, poison in the third channel."""

    def __init__(self, *, leaves_at_work: bool) -> None:
        super().__init__()
        self.leaves_at_work = leaves_at_work
        self.at_work: list[int] = []  # rows of the grid of each
        self.met: set[tuple[int, ...]] = set()  # what was ever at work together
        self.lock = threading.Lock()
        self.forwards: list[tuple[int, list[int]]] = []  # rows of the grid, item numbers
        self.permits = threading.Semaphore(0)
        self.is_open = threading.Event()

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        if pixels[0, 0, 0, 2] == 128:  # the grey image of a probe
            return super().encode(pixels, outputs)
        return self._leave_at_work(pixels, outputs)()

    def begin(self, pixels: Pixels, outputs: Outputs) -> Encoded | Callable[[], Encoded]:
        return self._leave_at_work(pixels, outputs) if self.leaves_at_work else self.encode(pixels, outputs)

    def _leave_at_work(self, pixels: Pixels, outputs: Outputs) -> Callable[[], Encoded]:
        numbers = [int(row[0, 0, 0]) * 256 + int(row[0, 0, 1]) for row in pixels]
        rows = pixels.shape[1]
        with self.lock:
            self.forwards.append((rows, numbers))
            self.at_work.append(rows)
            self.met.add(tuple(self.at_work))

        def finish() -> Encoded:
            if not self.is_open.is_set():
                assert self.permits.acquire(timeout=30)
            with self.lock:
                self.at_work.remove(rows)
            if (pixels[:, 0, 0, 2] == 1).any():
                raise EncoderFailed("poisoned")
            encoded = FakeEncoder.encode(self, pixels, outputs)
            return Encoded(grid=encoded.grid, pooled=np.array(numbers, dtype=np.float32)[:, None])

        return finish


@dataclass
class Submitted:
    key: ImageKey
    future: asyncio.Future[Any]
    deadline: float
    is_poison: bool
    endings: int = 0
    is_cancelled: bool = False
    is_abandoned: bool = False


class BatcherMachine(RuleBasedStateMachine):
    @initialize(leaves_at_work=st.booleans(), lanes=st.sampled_from([1, 2]))
    def start(self, leaves_at_work: bool, lanes: int) -> None:
        self.now = 0.0
        self.is_over = False
        self.items: list[Submitted] = []
        self.loop_errors: list[dict[str, Any]] = []
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: self.loop_errors.append(context))
        self.lanes = 1 if leaves_at_work else lanes
        self.encoder = Recorder(leaves_at_work=leaves_at_work)
        self.batcher = Batcher(
            ceiling=CEILINGS.__getitem__,
            clock=lambda: self.now,
            lanes=self.lanes,
            runs_alone=lambda key: self.lanes > 1 and key == ALONE,
        )
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self.batcher.start()
        await self.batcher.add(MODEL, lambda: self.encoder)

    def turn(self) -> None:
        """Let the loop do what is due."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))

    @rule(
        key=st.sampled_from(KEYS), is_poison=st.sampled_from([False, False, True]), patience=st.sampled_from([1000, 3])
    )
    def submit(self, key: ImageKey, is_poison: bool, patience: int) -> None:
        number = len(self.items)
        pixels = np.zeros((*key.size, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 2] = number // 256, number % 256, is_poison
        deadline = self.now + patience

        async def put() -> asyncio.Future[Any]:
            return self.batcher.submit(key, pixels, deadline=deadline)

        if self.is_over:
            with pytest.raises(ShuttingDown):
                self.loop.run_until_complete(put())
            return
        item = Submitted(key, self.loop.run_until_complete(put()), deadline, is_poison)

        def count(future: asyncio.Future[Any]) -> None:
            item.endings += 1

        item.future.add_done_callback(count)
        self.items.append(item)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.items))
        item.is_cancelled = item.future.cancel() or item.is_cancelled
        self.turn()

    @rule(permits=st.integers(1, 4))
    def let_forwards_run(self, permits: int) -> None:
        self.encoder.permits.release(permits)
        self.turn()

    @rule(seconds=st.integers(1, 4))
    def tick(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: len(self.items) > 5)
    @rule()
    def abandon(self) -> None:
        self.is_over = True
        self.turn()
        for item in self.items:
            item.is_abandoned = item.is_abandoned or not item.future.done()
        self.batcher.abandon(ShuttingDown())
        self.turn()
        assert all(item.future.done() for item in self.items)

    @invariant()
    def nothing_went_wrong_on_the_loop(self) -> None:
        assert self.loop_errors == []

    @invariant()
    def no_batch_is_above_its_ceiling_or_mixed(self) -> None:
        for _, numbers in list(self.encoder.forwards):
            keys = {self.items[number].key for number in numbers}
            assert len(keys) == 1
            assert len(numbers) <= CEILINGS[keys.pop()]

    def teardown(self) -> None:
        self.encoder.is_open.set()
        self.encoder.permits.release(1000)
        self.loop.run_until_complete(self._all_done())
        self.turn()
        assert self.batcher.snapshot(MODEL) == (0, 0.0)
        assert self.loop.run_until_complete(self.batcher.stop(timeout_s=30))
        self.loop.close()
        assert self.encoder.at_work == []
        assert all(len(met) <= self.lanes + self.encoder.leaves_at_work for met in self.encoder.met)
        if self.lanes > 1:
            assert all(len(met) == 1 for met in self.encoder.met if ALONE.size.height in met)
        self.nothing_went_wrong_on_the_loop()
        self.no_batch_is_above_its_ceiling_or_mixed()
        for number, item in enumerate(self.items):
            assert item.endings == 1
            self._ended_as_it_should(number, item)
        for key in KEYS if self.lanes == 1 else []:  # two lanes may take batches in order and begin them in another
            first_runs = list(
                dict.fromkeys(n for rows, numbers in self.encoder.forwards if rows == key.size.height for n in numbers)
            )
            assert first_runs == sorted(first_runs)

    async def _all_done(self) -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(*(item.future for item in self.items), return_exceptions=True)

    def _ended_as_it_should(self, number: int, item: Submitted) -> None:
        if item.is_cancelled:
            assert item.future.cancelled()
            return
        error = item.future.exception()
        if item.is_abandoned and isinstance(error, ShuttingDown):
            return
        if isinstance(error, DeadlineExceeded):
            assert item.deadline <= self.now
        elif item.is_poison:
            assert isinstance(error, EncoderFailed)
        else:
            assert error is None
            answer = item.future.result()
            assert isinstance(answer, Answer)
            assert answer.row.pooled[0] == number


TestBatcherMachine = BatcherMachine.TestCase
TestBatcherMachine.settings = settings(max_examples=50, stateful_step_count=30)
