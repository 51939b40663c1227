"""The threads that own the device, one a lane, and the futures through which the event loop waits for them.

A thread takes its next batch itself the moment it is free, under a lock that is held for microseconds. So whatever
arrived during one forward can share the next. Rows go back to the loop in one call a batch.

The policies stand beside: how large a batch may be (limits.py), how many run side by side (lanes.py), when a batch
waits for images that are being decoded (patience.py), when the next is begun behind the one that runs (behind.py),
what happens if a forward hangs (watchdog.py).
"""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from encoders.contract.errors import VisiontowerError
from encoders.contract.values import Pixels
from service.errors import DeadlineExceeded, DeviceLost
from service.memory.measurement import Measurement
from service.memory.shape import ImageShape, Shape
from service.scheduling.batch import Batch, Outcome
from service.scheduling.behind import may_follow
from service.scheduling.items import Answer, Item, fail, resolve
from service.scheduling.lanes import Lanes
from service.scheduling.limits import BatchLimits
from service.scheduling.patience import Patience
from service.scheduling.queue import Line, Queue, Taken
from service.scheduling.resident import Resident
from service.scheduling.spans import trace_forward, trace_unserved
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Trace

R = TypeVar("R")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Running:
    """A batch that was begun. started: when, on the clock."""

    taken: Taken[Item]
    started: float
    batch: Batch


class Work(NamedTuple):
    """What a lane is at. since: when it began its last forward, on the clock. taken: its batch; None: a call."""

    lane: int
    since: float
    taken: Taken[Item] | None


class Expected:
    """An image whose pixels are being made: `fill` or `fail` is called once, on any thread.

    since: when it was expected, on the clock. future: ends as `DeviceThreads.submit` says. Once it is done, nobody
    waits for the pixels any more.
    """

    def __init__(
        self, threads: "DeviceThreads", item: Item, shape: ImageShape, *, deadline: float, since: float
    ) -> None:
        self.item = item
        self.shape = shape
        self.deadline = deadline
        self.since = since
        self.future: asyncio.Future[Answer[Any]] = item.future
        self._threads = threads

    def fill(self, pixels: Pixels) -> None:
        """Queue it."""
        self._threads.settle(self, pixels)

    def fail(self, error: Exception | None) -> None:
        """It cannot be made; None: nobody wanted it any more."""
        if error is not None:
            self._threads.tell(fail, [self.future], error)
        self._threads.settle(self, None)


class DeviceThreads:
    """Queues work for the encoders and runs it, batch after batch.

    Its methods are for the event loop that it was started on; `settle` and `tell` may be called on any thread.
    """

    def __init__(
        self,
        *,
        limits: BatchLimits,
        measurement: Measurement,
        metrics: Metrics,
        clock: Callable[[], float],
        lanes: Lanes | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._limits = limits
        self._measurement = measurement
        self._metrics = metrics
        self._clock = clock
        self._wake = threading.Condition()
        self._lanes = lanes or Lanes()  # under _wake
        self._patience = patience  # under _wake
        self._queue: Queue[Item] = Queue()  # under _wake
        self._calls: deque[tuple[asyncio.Future[Any], Callable[[], None]]] = deque()  # under _wake
        self._at_work: dict[int, Taken[Item] | None] = {}  # by lane, while it is at work; under _wake
        self._ran: deque[tuple[Shape, float]] = deque()  # forwards, and their seconds, that the queue has not heard of
        self._parts: dict[int, int] = {}  # of the cores, by lane
        self._stopping = False  # under _wake
        self._open: set[asyncio.Future[Any]] = set()  # all that somebody waits for; of the event loop
        self.refusal: VisiontowerError | None = None
        """What everybody is told who asks for work; None: there is no reason to."""
        self._running_lanes = 0  # of the event loop
        self._ended = asyncio.Event()
        self.is_lost = False
        """Whether a thread has ended that nobody told to."""

    def start(self) -> None:
        """Start the threads."""
        self._loop = asyncio.get_running_loop()
        self._running_lanes = self._lanes.number
        for lane in range(self._lanes.number):
            threading.Thread(target=self._main, args=(lane,), name=f"device {lane}", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """Whether all device threads run."""
        return self._running_lanes == self._lanes.number

    def at_work(self) -> list[Work]:
        """What each lane is at; nothing of lanes that wait for work."""
        with self._wake:
            return [Work(lane, since, self._at_work.get(lane)) for lane, since in self._lanes.entered.items()]

    def can_begin(self, *, beside: int) -> bool:
        """Whether a batch may begin beside the work of so many lanes that does not end."""
        with self._wake:
            return not self._lanes.is_alone and beside < self._lanes.number

    def waiting(self, model: str) -> tuple[int, float]:
        """The images of this model that wait, and the seconds that its oldest item has waited."""
        with self._wake:
            since = self._queue.oldest_since(model)
            return self._queue.waiting_images(model), 0.0 if since is None else max(0.0, self._clock() - since)

    def submit(
        self, resident: Resident, shape: Shape, payload: Any, *, deadline: float, trace: Trace | None = None
    ) -> asyncio.Future[Answer[Any]]:
        """Queue one image's pixels or one text's ids; cancelling the future takes the item out of the queue.

        payload: uint8 [H, W, 3] for an ImageShape, int64 [context_length] for a TextShape. deadline: on the clock; the
        item is not run past it. trace: of its request.

        The future ends with an Answer, EncoderFailed, DeadlineExceeded, or the error of `abandon` or of the thread's
        end. Raises DeviceLost, or the error that everything was abandoned with.
        """
        item = self._item(resident, payload, trace)
        with self._wake:
            item.ticket, _ = self._queue.put(shape, item, now=self._clock(), deadline=deadline)
            self._wake.notify_all()
        return item.future

    def submit_set(
        self,
        resident: Resident,
        shape: Shape,
        payloads: Sequence[Any],
        *,
        deadline: float,
        trace: Trace | None = None,
    ) -> list[asyncio.Future[Answer[Any]]]:
        """As `submit`, of items that share their forwards with nobody else, in order."""
        items = [self._item(resident, payload, trace) for payload in payloads]
        with self._wake:
            tickets = self._queue.put_set(shape, items, now=self._clock(), deadline=deadline)
            for item, ticket in zip(items, tickets, strict=True):
                item.ticket = ticket
            self._wake.notify_all()
        return [item.future for item in items]

    def expect(self, resident: Resident, shape: ImageShape, *, deadline: float, trace: Trace | None = None) -> Expected:
        """As `submit`, of pixels that are being made elsewhere: `Expected.fill` or `fail` follows."""
        item, since = self._item(resident, None, trace), self._clock()
        if self._patience is not None:
            with self._wake:
                self._patience.expect(shape, now=since)
        return Expected(self, item, shape, deadline=deadline, since=since)

    def settle(self, expected: Expected, payload: Pixels | None) -> None:
        """An expected item has its payload, or none. On any thread."""
        item, shape, patience = expected.item, expected.shape, self._patience
        in_line = 0
        with self._wake:
            if item.resident.hang is not None:
                self.tell(fail, [item.future], item.resident.hang)
            elif payload is not None and not item.future.done():
                item.payload = payload
                item.ticket, in_line = self._queue.put(shape, item, now=self._clock(), deadline=expected.deadline)
            is_due = patience is not None and patience.arrived(shape, expected=expected.since, in_line=in_line)
            if is_due or (in_line and self._queue.size == 1):  # a batch waited for it, or a lane for anything at all
                self._wake.notify_all()

    async def call(self, function: Callable[[], R]) -> R:
        """Run a function on a device thread, ahead of the queue, after what has begun and with nothing beside it."""
        future: asyncio.Future[R] = self._promise()

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                self.tell(fail, [future], error)
            else:
                self.tell(resolve, future, result)

        with self._wake:
            self._calls.append((future, run))
            self._wake.notify_all()
        return await future

    def give_up(self, models: Collection[str], error: VisiontowerError) -> None:
        """Fail what waits for these models, and all that cannot begin beside work that does not end."""
        with self._wake:
            items = self._queue.take_all(
                lambda line: line.shape.model in models or self._limits.of(line.shape).runs_alone
            )
            calls = [future for future, _ in self._calls]
            self._calls.clear()
            self._wake.notify_all()
        fail([*calls, *(item.future for item in items)], error)

    def abandon(self, error: VisiontowerError) -> None:
        """Fail everything that waits or runs, and all that is still to come; the device's rows are dropped.

        To come: an image of an admitted request may be on its way through decode and preprocess.
        """
        self.refusal = error
        fail(list(self._open), error)
        with self._wake:
            self._queue.clear()
            self._calls.clear()

    def resume(self, error: VisiontowerError) -> None:
        """Take work again, if it was for this error that none is taken."""
        if self.refusal is error:
            self.refusal = None

    async def stop(self, *, timeout_s: float) -> bool:
        """End the threads after what they have begun; False if one is stuck. Waiting work fails with DeviceLost."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if not self._running_lanes:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            _log.error("the device thread is stuck in a forward")
            self.abandon(DeviceLost())
            return False
        return True

    def _item(self, resident: Resident, payload: Any, trace: Trace | None) -> Item:
        """Not queued yet. Raises as `_promise`, and what is said while a forward of the encoder hangs."""
        if resident.hang is not None:
            raise resident.hang.with_traceback(None)  # each time it would hold more frames
        item = Item(resident, payload, self._promise(), trace)
        item.future.add_done_callback(partial(self._forget, item))
        return item

    def _promise(self) -> asyncio.Future[Any]:
        """A future that `abandon` knows of. Raises DeviceLost, or the error that everything was abandoned with."""
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def _forget(self, item: Item, future: asyncio.Future[Any]) -> None:
        """Nobody waits for a cancelled item: take it out of the queue."""
        if future.cancelled():
            with self._wake:
                left = None if item.ticket is None else self._queue.discard(item.ticket)
                if left is not None:
                    self._wake.notify_all()  # the next batch may have waited with it
            if left is not None:
                trace_unserved(left, now=self._clock())

    # From here on: the device threads.

    def _main(self, lane: int) -> None:
        try:
            work = self._next(lane)
            while work is not None:
                work()
                del work  # it holds the encoder, which may be let go of while this lane waits
                work = self._next(lane)
        except BaseException:
            # Exception in our own code, or SystemExit and the like from a library: either way the device is ownerless.
            _log.critical("the device thread has ended", exc_info=True)
        finally:
            self.tell(self._on_end)

    def _next(self, lane: int) -> Callable[[], None] | None:
        """The next thing to do, waited for; None when told to stop."""
        lanes = self._lanes
        with self._wake:
            if lanes.leave(lane):
                self._at_work.pop(lane, None)  # let go of: it holds the batch's pixels
                self._wake.notify_all()  # who must be alone may have waited for this
            while not self._stopping:
                wait_s = None
                if lane != lanes.next or lanes.is_alone:
                    pass  # it is for a free lane before this one, or for nobody yet
                elif self._calls:
                    if not lanes.busy:
                        lanes.enter(lane, now=self._clock(), alone=True)
                        return self._calls.popleft()[1]
                elif self._queue.size:
                    work, wait_s = self._take_work(lane)
                    if work is not None:
                        return work
                self._wake.wait(wait_s)
        return None

    def _take_work(self, lane: int) -> tuple[Callable[[], None] | None, float | None]:
        """The next batch for a free lane, or the seconds that it had better wait, None until woken. Under _wake."""
        lanes, patience = self._lanes, self._patience
        line = self._next_line()
        assert line is not None
        limit = self._limits.of(line.shape)
        waiting, is_free = len(line.waiting), not lanes.busy
        is_alone = limit.runs_alone
        if not is_free and (is_alone or lanes.busy >= lanes.abreast(limit.forward_s)):
            return None, None
        if not line.is_set:
            if patience is not None and patience.coming:
                wait_s = patience.wait_s(
                    line.shape,
                    waiting=waiting,
                    enough=min(lanes.enough(limit.forward_s), limit.ceiling),
                    forward_s=limit.forward_s,
                    since=line.oldest.since,
                    now=self._clock(),
                )
                if wait_s > 0:
                    return None, wait_s
            if is_free and self._queue.size == 1 and not (patience and patience.coming):
                is_alone = True
        most = limit.ceiling
        if lanes.number > 1 and waiting > 1 and not line.is_set:
            most = min(most, lanes.share(waiting, forward_s=limit.forward_s))
        taken = self._queue.take(line, most=most, now=self._clock())
        if taken.expired:
            self._tell_expired(taken)
        if not taken.batch:
            return None, 0.0
        part = lanes.enter(lane, now=self._clock(), alone=is_alone)
        self._at_work[lane] = taken
        if self._queue.size:
            self._wake.notify_all()  # the rest is another lane's to wait with
        return partial(self._run, lane, taken, part), None

    def _next_line(self) -> Line[Item] | None:
        """Under _wake."""
        while self._ran:
            self._queue.ran(*self._ran.popleft())
        return self._queue.next_line()

    def _tell_expired(self, taken: Taken[Item]) -> None:
        for late in taken.expired:
            self.tell(fail, [late.item.future], DeadlineExceeded())
            trace_unserved(late, now=self._clock())

    def _run(self, lane: int, taken: Taken[Item], part: int) -> None:
        """Run the batch, and those that are begun behind it: none is on the device any more when this returns."""
        if self._parts.get(lane) != part:
            self._parts[lane] = part
            self._lanes.take_cores(part)
        running: _Running | None = self._begin(lane, taken)
        ended = -math.inf
        while running is not None:
            following = None if running.batch.is_done else self._begin_behind(lane, running)
            ended = self._finish(lane, running, before=ended)
            if following is not None:
                self._go_on(lane, following.taken)
            running = following

    def _go_on(self, lane: int, taken: Taken[Item] | None) -> None:
        """The lane is at another forward now, of this batch or of a try-out."""
        with self._wake:
            self._lanes.go_on(lane, now=self._clock())
            self._at_work[lane] = taken

    def _begin(self, lane: int, taken: Taken[Item]) -> _Running:
        started = self._clock()
        payloads = []
        for waiting in taken.batch:
            payloads.append(waiting.item.payload)
        encoder = taken.batch[0].item.resident.encoder
        batch = Batch(encoder, taken.shape, payloads, self._measurement, partial(self._go_on, lane, taken))
        return _Running(taken, started, batch)

    def _begin_behind(self, lane: int, running: _Running) -> _Running | None:
        """The next batch, begun behind this one that still runs, if the policy is for it."""
        with self._wake:
            line = self._next_line()
            if self._stopping or self._calls or line is None:
                return None
            ceiling = self._limits.of(line.shape).ceiling
            if not may_follow(line, running=len(running.taken.batch), ceiling=ceiling):
                return None
            taken = self._queue.take(line, most=ceiling, now=self._clock())
        self._tell_expired(taken)
        return self._begin(lane, taken) if taken.batch else None

    def _finish(self, lane: int, running: _Running, *, before: float) -> float:
        """before: when the batch that it was begun behind ended, if any. Gives when it has ended itself."""
        batch, taken = running.batch, running.taken
        outcomes = batch.outcomes or batch.wait()  # of a forward that ended at once they are there
        ended = self._clock()
        forward_s = ended - running.started
        shape, items = taken.shape, len(taken.batch)
        resident = taken.batch[0].item.resident
        # One bad input must not take the server out of rotation. So a good image is tried only if nothing worked.
        if batch.worked:
            resident.is_healthy = True
        else:
            self._go_on(lane, None)
            resident.probe()
        futures, waits, is_traced = [], [], False
        for waiting in taken.batch:
            futures.append(waiting.item.future)
            waits.append(running.started - waiting.since)
            is_traced = is_traced or waiting.item.trace is not None
        self._ran.append((shape, ended - max(running.started, before)))  # it had the device once that was free
        ceiling = self._limits.of(shape).ceiling
        if batch.worked:  # a failure may be quick, and says nothing of how fast forwards are
            self._limits.ran(shape, items, forward_s)
        self._metrics.forward(
            shape.model,
            size=shape.size if isinstance(shape, ImageShape) else None,
            items=items,
            ceiling=ceiling,
            is_cut=taken.left > 0 and self._limits.is_full(shape, items),
            queue_s=waits,
            forward_s=forward_s,
        )
        self.tell(_deliver, futures, outcomes, waits, forward_s)
        if is_traced:
            about = {"visiontower.lane": lane, "visiontower.predicted_bytes": self._measurement.predicted(shape, items)}
            if batch.peak is not None:
                about["visiontower.peak_bytes"] = batch.peak
            now, started = self._clock(), running.started
            trace_forward(taken, outcomes, started=started, ended=ended, now=now, attributes=about)
        return ended

    def tell(self, function: Callable[..., None], *args: Any) -> None:
        """Call on the event loop; if that is closed, nobody is left to hear."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            _log.debug("the event loop is closed")

    def _on_end(self) -> None:
        """Of one lane. If nobody told it to, the others end too: what is left of the device is not trusted."""
        self._running_lanes -= 1
        with self._wake:
            told, self._stopping = self._stopping, True
            self._wake.notify_all()
        self.is_lost = self.is_lost or not told
        if not self._running_lanes:
            self._ended.set()
        if not told or not self._running_lanes:
            self.abandon(DeviceLost())


def _deliver(
    futures: Sequence[asyncio.Future[Any]], outcomes: Sequence[Outcome], waits: Sequence[float], forward_s: float
) -> None:
    """On the event loop: each future gets its answer or its error, unless nobody waits for it any more."""
    for future, outcome, queue_s in zip(futures, outcomes, waits, strict=True):
        if future.done():
            continue
        if isinstance(outcome, VisiontowerError):
            future.set_exception(outcome)
        else:
            future.set_result(Answer(outcome, queue_s, forward_s))
