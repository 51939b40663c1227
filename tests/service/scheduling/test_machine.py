"""The device threads under random work: submits of every kind, calls, loads, removals, cancels, time, drains, stops.

The encoders do their work at once, on one lane or two, or leave their device at work, as on a GPU. Batches wait for
images that are being made, or do not. Forwards and calls are held until the test permits them; the test also makes the
images and moves the clock.

Invariants: every item ends exactly once, and as it should; no batch is above its ceiling or of two shapes; what came as
a set is mixed with nobody; no more than the lanes are at work at once, or two batches that follow each other; what must
run alone does, and so do calls; within a shape first in is first run; a failure touches only the items that cause it; a
model that fails to load touches nobody; a model that was removed is not run; draining leaves nothing; and once all is
made and permitted, nobody waits.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from encoders.adapters.fake import FakeEncoder, FakeMemory, fake_spec
from encoders.contract.encoder import Finished, Forward
from encoders.contract.errors import EncoderFailed, NonFiniteOutput, UndecodableImage, VisiontowerError
from encoders.contract.values import Encoded, Floats, ImageSize, Outputs, Pixels, TokenIds
from encoders.memory.prediction import CPU
from service.errors import DeadlineExceeded, DeviceLost, ShuttingDown, Unavailable
from service.memory.budget import Budget
from service.memory.measurement import Measurement
from service.memory.shape import ImageShape, Shape
from service.scheduling.device_threads import DeviceThreads
from service.scheduling.items import Answer
from service.scheduling.lanes import Lanes
from service.scheduling.patience import Patience
from service.scheduling.resident import Resident
from tests.support.device_threads import AtWork, FixedLimits, Later, RecordingMetrics, submit_made
from tests.support.shapes import image_shape, text_shape

MODELS = ["fake:first", "fake:second", "fake:third"]
"""The first is always on the device; the others come and go."""
IMAGES = {model: [image_shape(model, 8, height=8 * rows) for rows in (1, 2, 3)] for model in MODELS}
TEXTS = {model: text_shape(model) for model in MODELS}
CEILINGS: dict[Shape, int] = {
    **{shape: ceiling for model in MODELS for shape, ceiling in zip(IMAGES[model], (1, 3, 5), strict=True)},
    **{TEXTS[model]: 4 for model in MODELS},
}
ALONE = [IMAGES[model][0] for model in MODELS]
"""Where there are lanes."""
GREY, WARM_UP = 128, ord(" ")
"""What the third channel of a trial's image, and the second id of its text, are."""


@dataclass(eq=False)
class Forwarded:
    """A forward that began. part: of the cores, that its thread had taken."""

    model: str
    numbers: list[int]
    part: int


class Floor:
    """Where forwards and calls are seen. Each waits for a permit before it ends."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.permits = threading.Semaphore(0)
        self.is_open = threading.Event()
        self.parts: dict[int, int] = {}  # by thread
        self.at_work: list[Forwarded] = []
        self.forwards: list[Forwarded] = []
        self.met: list[list[Forwarded]] = []  # what was at work together
        self.calls = 0  # that run now
        self.wrongs: list[str] = []

    def take_cores(self, part: int) -> None:
        self.parts[threading.get_ident()] = part

    def permit(self) -> None:
        if not self.is_open.is_set():
            assert self.permits.acquire(timeout=60), "the test never permitted it"

    def begin(self, model: str, numbers: list[int]) -> Forwarded:
        with self.lock:
            forward = Forwarded(model, numbers, self.parts.get(threading.get_ident(), 1))
            self.forwards.append(forward)
            self.at_work.append(forward)
            self.met.append(list(self.at_work))
            self.lock.notify_all()
            if self.calls:
                self.wrongs.append(f"{numbers} began beside a call")
        return forward

    def end(self, forward: Forwarded) -> None:
        self.permit()
        with self.lock:
            self.at_work.remove(forward)

    def has_work(self, most: int, timeout: float) -> bool:
        """Whether anything is at work, or will be soon. It is given some time to be at work on as much as it may."""
        with self.lock:
            self.lock.wait_for(lambda: self.calls or len(self.at_work) >= most, timeout)
            return bool(self.calls or self.at_work)

    def drain(self) -> None:
        """Take back the permits that nobody used."""
        while self.permits.acquire(blocking=False):
            pass

    @contextmanager
    def call(self) -> Iterator[None]:
        with self.lock:
            if self.at_work or self.calls:
                self.wrongs.append("a call began beside other work")
            self.calls += 1
            self.lock.notify_all()
        try:
            self.permit()
            yield
        finally:
            with self.lock:
                self.calls -= 1


class Recorder(FakeEncoder):
    """An item's number is in the first two channels of its image or the first id of its text; poison is in the next."""

    def __init__(self, model: str, floor: Floor, *, leaves_at_work: bool, is_broken: bool = False) -> None:
        super().__init__(fake_spec(model))
        self.floor = floor
        self.leaves_at_work = leaves_at_work
        self.is_broken = is_broken
        self.is_removed = False

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        if pixels[0, 0, 0, 2] == GREY:
            return Encoded(self.spec.grid(), pooled=np.full((1, 6), np.nan if self.is_broken else 0, np.float32))
        return self._leave_at_work(pixels)()

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        finish = self._leave_at_work(pixels)
        return AtWork(finish) if self.leaves_at_work else Finished(finish())

    def encode_text(self, ids: TokenIds) -> Floats:
        if ids[0, 1] == WARM_UP:
            return np.zeros((1, 6), np.float32)
        return self._begin([int(number) for number in ids[:, 0]], is_poisoned=bool(ids[:, 1].any()))()

    def _leave_at_work(self, pixels: Pixels) -> Callable[[], Encoded]:
        numbers = [int(row[0, 0, 0]) * 256 + int(row[0, 0, 1]) for row in pixels]
        finish = self._begin(numbers, is_poisoned=bool((pixels[:, 0, 0, 2] == 1).any()))
        grid = self.spec.grid(ImageSize(*pixels.shape[1:3]))
        return lambda: Encoded(grid=grid, pooled=finish())

    def _begin(self, numbers: list[int], *, is_poisoned: bool) -> Callable[[], Floats]:
        if self.is_removed:
            self.floor.wrongs.append(f"{numbers} were given to an encoder that was removed")
        forward = self.floor.begin(self.spec.id, numbers)

        def finish() -> Floats:
            self.floor.end(forward)
            if is_poisoned:
                raise EncoderFailed("poisoned")
            return np.repeat(np.array(numbers, dtype=np.float32)[:, None], 6, axis=1)

        return finish


@dataclass
class Submitted:
    """An item and all that may become of it. arrival: its place among those that joined the queue; None: not yet."""

    shape: Shape
    deadline: float
    is_poison: bool = False
    fails: VisiontowerError | None = None
    of_set: int | None = None
    is_made_later: bool = False
    future: asyncio.Future[Any] = field(init=False)
    arrival: int | None = None
    made: int = 0
    endings: int = 0
    is_cancelled: bool = False
    is_cancelled_before_made: bool = False
    is_abandoned: bool = False
    is_stopped: bool = False


class DeviceThreadsMachine(RuleBasedStateMachine):
    @initialize(leaves_at_work=st.booleans(), lanes=st.sampled_from([1, 2]), is_patient=st.booleans())
    def start(self, leaves_at_work: bool, lanes: int, is_patient: bool) -> None:
        logging.disable(logging.ERROR)  # of the forwards that fail on purpose
        self.now = 0.0
        self.is_over = self.is_stopped = False
        self.items: list[Submitted] = []
        self.sets = self.arrivals = 0
        self.calls: list[asyncio.Task[Any]] = []
        self.stopping: asyncio.Task[bool] | None = None
        self.pool = Later()
        self.loop_errors: list[dict[str, Any]] = []
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: self.loop_errors.append(context))
        self.leaves_at_work = leaves_at_work
        self.is_patient = is_patient
        self.number_of_lanes = 1 if leaves_at_work else lanes
        self.floor = Floor()
        self.metrics = RecordingMetrics(*MODELS)
        self.threads = DeviceThreads(
            limits=FixedLimits(CEILINGS.__getitem__, alone=ALONE if self.number_of_lanes > 1 else ()),
            measurement=Measurement(FakeMemory(2**60), Budget(limit=2**60, overhead=CPU), self.metrics),
            metrics=self.metrics,
            clock=lambda: self.now,
            lanes=Lanes(self.number_of_lanes, take_cores=self.floor.take_cores, enough=4 * self.number_of_lanes),
            patience=Patience() if is_patient else None,
        )
        self.residents: dict[str, Resident] = {}
        self.on_loop(self.threads.start)
        self.load(MODELS[0])

    def on_loop(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        async def run() -> Any:
            return function(*args, **options)

        return self.loop.run_until_complete(run())

    def turn(self) -> None:
        """Let the loop do what is due."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))

    def call_now(self, function: Callable[[], Any]) -> Any:
        """A call that is waited for: all that has begun may end before it, and the next may begin."""
        was_open = self.floor.is_open.is_set()
        task = self.loop.create_task(self.threads.call(function))
        self.turn()
        self.floor.is_open.set()
        self.floor.permits.release(100)
        try:
            return self.loop.run_until_complete(asyncio.wait_for(task, 60))
        finally:
            if not was_open:
                self.floor.is_open.clear()
            self.floor.drain()

    def load(self, model: str, *, is_broken: bool = False) -> None:
        def come() -> Resident:
            encoder = Recorder(model, self.floor, leaves_at_work=self.leaves_at_work, is_broken=is_broken)
            resident = Resident(encoder)
            with self.floor.call():
                resident.try_out()
            return resident

        self.residents[model] = self.call_now(come)

    # Items.

    def submit(self, items: Sequence[Submitted], submit: Callable[[Resident], Sequence[asyncio.Future[Any]]]) -> None:
        """Hand items in, in one go."""
        resident = self.residents[items[0].shape.model]
        if self.is_over:
            with pytest.raises(ShuttingDown):
                self.on_loop(submit, resident)
            return
        futures = self.on_loop(submit, resident)
        for item, future in zip(items, futures, strict=True):
            item.future = future
            future.add_done_callback(partial(self._count, item))
            self.items.append(item)
            if not item.is_made_later:
                self._arrive(item)

    def payload(self, shape: Shape, number: int, is_poison: bool) -> Any:
        if isinstance(shape, ImageShape):
            pixels = np.zeros((*shape.size, 3), dtype=np.uint8)
            pixels[..., 0], pixels[..., 1], pixels[..., 2] = number // 256, number % 256, is_poison
            return pixels
        ids = np.zeros(16, dtype=np.int64)
        ids[:2] = number, is_poison
        return ids

    def _count(self, item: Submitted, future: asyncio.Future[Any]) -> None:
        item.endings += 1

    def _arrive(self, item: Submitted) -> None:
        item.arrival = self.arrivals
        self.arrivals += 1

    is_running = precondition(lambda self: not self.is_stopped)
    models = st.integers(0, len(MODELS) - 1)
    shapes = st.sampled_from([0, 1, 1, 2, 2])
    rarely = st.sampled_from([False, False, False, True])
    time_left = st.sampled_from([1000, 1000, 3])

    def model(self, number: int) -> str:
        return list(self.residents)[number % len(self.residents)]

    @is_running
    @rule(model=models, shape=shapes, is_poison=rarely, time_left=time_left)
    def submit_image(self, model: int, shape: int, is_poison: bool, time_left: int) -> None:
        item = Submitted(IMAGES[self.model(model)][shape], self.now + time_left, is_poison)
        payload = self.payload(item.shape, len(self.items), is_poison)
        self.submit(
            [item],
            lambda resident: [self.threads.submit(resident, item.shape, payload, deadline=item.deadline)],
        )

    @is_running
    @rule(model=models, is_poison=rarely, time_left=time_left)
    def submit_text(self, model: int, is_poison: bool, time_left: int) -> None:
        item = Submitted(TEXTS[self.model(model)], self.now + time_left, is_poison)
        payload = self.payload(item.shape, len(self.items), is_poison)
        self.submit(
            [item],
            lambda resident: [self.threads.submit(resident, item.shape, payload, deadline=item.deadline)],
        )

    @is_running
    @rule(
        model=models,
        shape=st.sampled_from([0, 1, 2, 3]),
        poison=st.lists(rarely, min_size=1, max_size=7),
        time_left=time_left,
    )
    def submit_set(self, model: int, shape: int, poison: list[bool], time_left: int) -> None:
        name = self.model(model)
        kind: Shape = TEXTS[name] if shape == 3 else IMAGES[name][shape]
        deadline = self.now + time_left
        items = [Submitted(kind, deadline, is_poison, of_set=self.sets) for is_poison in poison]
        payloads = [self.payload(kind, len(self.items) + place, each) for place, each in enumerate(poison)]
        self.submit(items, lambda resident: self.threads.submit_set(resident, kind, payloads, deadline=deadline))
        self.sets += 1

    @is_running
    @rule(model=models, shape=shapes, is_poison=rarely, fails=rarely, time_left=time_left)
    def submit_made(self, model: int, shape: int, is_poison: bool, fails: bool, time_left: int) -> None:
        kind = IMAGES[self.model(model)][shape]
        error = UndecodableImage("PNG", "cut off") if fails else None
        item = Submitted(kind, self.now + time_left, is_poison, error, is_made_later=True)
        payload = self.payload(kind, len(self.items), is_poison)

        def make() -> Pixels:
            item.made += 1
            if error is not None:
                raise error
            self._arrive(item)
            pixels: Pixels = payload
            return pixels

        self.submit(
            [item],
            lambda resident: [submit_made(self.threads, resident, kind, make, pool=self.pool, deadline=item.deadline)],
        )

    @precondition(lambda self: self.pool.work)
    @rule(items=st.integers(1, 4))
    def make_some(self, items: int) -> None:
        for _ in range(min(items, len(self.pool.work))):
            self.pool.step()
        self.turn()

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._cancel(data.draw(st.sampled_from(self.items)))
        self.turn()

    def _cancel(self, item: Submitted) -> None:
        if item.future.cancel():
            item.is_cancelled = True
            item.is_cancelled_before_made = item.is_made_later and not item.made

    # The device, and time.

    @rule(permits=st.integers(1, 4), looks=st.booleans())
    def let_forwards_run(self, permits: int, looks: bool) -> None:
        self.floor.drain()
        self.floor.permits.release(permits)
        self.turn()
        if looks:
            self.something_is_at_work_if_anything_waits()

    @rule()
    def something_is_at_work_if_anything_waits(self) -> None:
        """Unless batches have patience: then it may be for what is being made."""
        if self.is_patient or self.is_stopped:
            return
        for _ in range(10_000):
            self.turn()
            waits = [item.future for item in self.items if item.arrival is not None]
            if all(each.done() for each in (*waits, *self.calls)):
                return
            if self.floor.has_work(self.number_of_lanes + self.leaves_at_work, 0.003):
                return
        raise AssertionError("items wait, and nothing is at work")

    @rule(seconds=st.integers(1, 4))
    def tick(self, seconds: int) -> None:
        self.now += seconds

    @is_running
    @precondition(lambda self: not self.is_over)
    @rule(fails=st.booleans())
    def call(self, fails: bool) -> None:
        def function() -> None:
            with self.floor.call():
                pass
            if fails:
                raise NonFiniteOutput(encoder="a call")

        self.calls.append(self.loop.create_task(self.threads.call(function)))
        self.turn()

    @is_running
    @precondition(lambda self: not self.is_over and len(self.residents) < len(MODELS))
    @rule(is_broken=st.booleans())
    def load_another(self, is_broken: bool) -> None:
        model = next(model for model in MODELS if model not in self.residents)
        if not is_broken:
            self.load(model)
            return
        with pytest.raises(NonFiniteOutput):
            self.load(model, is_broken=True)

    @is_running
    @precondition(lambda self: not self.is_over and len(self.residents) > 1)
    @rule(number=st.integers(1, len(MODELS) - 1))
    def remove(self, number: int) -> None:
        """Of a model that is removed nothing waits: whoever asked has left."""
        model = list(self.residents)[max(1, number % len(self.residents))]
        for item in self.items:
            if item.shape.model == model:
                self._cancel(item)
        self.turn()
        assert self.threads.waiting(model) == (0, 0.0)
        encoder = self.residents.pop(model).encoder
        assert isinstance(encoder, Recorder)

        def go() -> None:
            with self.floor.call():
                encoder.is_removed = True

        self.call_now(go)

    # The end.

    @precondition(lambda self: len(self.items) > 5)
    @rule()
    def abandon(self) -> None:
        def give_up() -> None:
            for item in self.items:
                item.is_abandoned = item.is_abandoned or not item.future.done()
            self.threads.abandon(ShuttingDown())

        self.on_loop(give_up)
        self.is_over = True
        self.turn()
        assert all(item.future.done() for item in self.items)
        assert [self.threads.waiting(model) for model in MODELS] == [(0, 0.0)] * len(MODELS)

    @is_running
    @precondition(lambda self: len(self.items) > 10)
    @rule()
    def stop(self) -> None:
        for item in self.items:
            item.is_stopped = not item.future.done()
        self.is_stopped = True
        self.stopping = self.loop.create_task(self.threads.stop(timeout_s=60))
        self.turn()

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert self.loop_errors == []
        assert self.floor.wrongs == []

    @invariant()
    def no_batch_is_above_its_ceiling_or_mixed(self) -> None:
        for forward in list(self.floor.forwards):
            items = [self.items[number] for number in forward.numbers]
            (shape,) = {item.shape for item in items}
            assert forward.model == shape.model
            assert len(items) <= CEILINGS[shape]
            assert len({item.of_set for item in items}) == 1
            assert len(set(forward.numbers)) == len(items)

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            self.loop.close()
            logging.disable(logging.NOTSET)
        self.nothing_went_wrong()
        self.no_batch_is_above_its_ceiling_or_mixed()
        self._only_so_many_met()
        self._first_in_was_first_run()
        self._sets_were_divided_by_their_ceilings_alone()
        assert all(resident.is_healthy for resident in self.residents.values())
        ran = {number for forward in self.floor.forwards for number in forward.numbers}
        assert sum(forward.items for forward in self.metrics.forwards) == len(ran)
        for number, item in enumerate(self.items):
            assert item.endings == 1
            assert item.made <= (item.is_made_later and not item.is_cancelled_before_made)
            self._ended_as_it_should(number, item)

    def _end(self) -> None:
        self.floor.is_open.set()
        self.floor.permits.release(1000)
        self.pool.run()
        self.loop.run_until_complete(asyncio.wait_for(self._all_done(), 60))
        self.turn()
        assert [self.threads.waiting(model) for model in MODELS] == [(0, 0.0)] * len(MODELS)
        assert self.loop.run_until_complete(self.threads.stop(timeout_s=60))
        assert self.stopping is None or self.loop.run_until_complete(self.stopping)
        self.turn()
        with pytest.raises(Unavailable):
            self.on_loop(self.threads.submit, self.residents[MODELS[0]], TEXTS[MODELS[0]], None, deadline=0.0)
        assert self.threads.at_work() == []
        assert not self.threads.is_alive

    async def _all_done(self) -> None:
        await asyncio.gather(*(item.future for item in self.items), return_exceptions=True)
        for outcome in await asyncio.gather(*self.calls, return_exceptions=True):
            if isinstance(outcome, DeviceLost):
                assert self.is_stopped
            elif isinstance(outcome, ShuttingDown):
                assert self.is_over
            else:
                assert outcome is None or isinstance(outcome, NonFiniteOutput)

    def _only_so_many_met(self) -> None:
        assert self.floor.at_work == []
        for met in self.floor.met:
            assert len(met) <= self.number_of_lanes + self.leaves_at_work
            if self.number_of_lanes > 1:
                is_alone = [forward.part == 1 for forward in met]
                assert len(met) == 1 or not any(is_alone)
                for forward in met:
                    item = self.items[forward.numbers[0]]
                    if item.shape in ALONE:
                        assert forward.part == 1
                    elif item.of_set is not None:
                        assert forward.part == self.number_of_lanes

    def _first_runs(self) -> list[list[int]]:
        """The forwards as they were first begun, before any was halved."""
        seen: set[int] = set()
        first = []
        for forward in self.floor.forwards:
            if not seen & set(forward.numbers):
                first.append(forward.numbers)
            seen |= set(forward.numbers)
        return first

    def _first_in_was_first_run(self) -> None:
        """Two lanes may take batches in order and begin them in another; within a batch the order is the queue's."""
        order: dict[object, list[int]] = {}
        for numbers in self._first_runs():
            arrivals = [self.items[number].arrival for number in numbers]
            assert None not in arrivals
            in_order = [arrival for arrival in arrivals if arrival is not None]
            assert in_order == sorted(in_order)
            item = self.items[numbers[0]]
            order.setdefault(item.shape if item.of_set is None else item.of_set, []).extend(in_order)
        if self.number_of_lanes == 1:
            for line in order.values():
                assert line == sorted(line)

    def _sets_were_divided_by_their_ceilings_alone(self) -> None:
        """Those from which nobody left."""
        runs = self._first_runs()
        for number in range(self.sets):
            members = [place for place, item in enumerate(self.items) if item.of_set == number]
            if not members or any(
                self.items[place].is_cancelled
                or self.items[place].is_abandoned
                or self.items[place].is_stopped
                or isinstance(self.items[place].future.exception(), DeadlineExceeded)
                for place in members
            ):
                continue
            ceiling = CEILINGS[self.items[members[0]].shape]
            divided = [members[start : start + ceiling] for start in range(0, len(members), ceiling)]
            assert sorted(run for run in runs if run[0] in members) == divided

    def _ended_as_it_should(self, number: int, item: Submitted) -> None:
        if item.is_cancelled:
            assert item.future.cancelled()
            return
        error = item.future.exception()
        if item.is_abandoned:
            assert isinstance(error, ShuttingDown)
        elif isinstance(error, DeviceLost):
            assert item.is_stopped
        elif isinstance(error, DeadlineExceeded):
            assert item.deadline <= self.now
        elif item.fails is not None:
            assert error is item.fails
        elif item.is_poison:
            assert isinstance(error, EncoderFailed)
        else:
            assert error is None
            answer = item.future.result()
            assert isinstance(answer, Answer)
            row = answer.row.pooled if isinstance(item.shape, ImageShape) else answer.row
            assert row[0] == number
            assert answer.queue_s >= 0
            assert answer.forward_s >= 0


TestDeviceThreadsMachine = DeviceThreadsMachine.TestCase
TestDeviceThreadsMachine.settings = settings(max_examples=50, stateful_step_count=40)
