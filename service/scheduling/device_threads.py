"""The threads that own the device, one on a GPU, and the futures through which the event loop waits for them.

A thread takes its next batch itself the moment it is free, under a lock that is held for microseconds: nothing is
waited for on the way, and whatever arrived during one forward can share the next. Rows go back to the loop in one call
a batch. What a batch is, is batching.py's to say; who may queue, door.py's.

On a CPU several forwards run side by side, each in a lane of its own with its part of the cores: a forward on all of
them waits at every product for the core that decodes an image or serves a request. What needs more than a lane's part
of the memory runs alone, as do calls. What waits is divided among the lanes that are free. A single item that is all
there is runs alone too, on all cores, for its answer comes sooner. That is always in the first lane: GNU's OpenMP keeps
a team for every thread that ever had one, and once all are larger than the machine their threads sleep at barriers.

Where an encoder leaves its device at work (a GPU), the next batch is stacked, sent and begun behind the one that runs,
if no better one would come of waiting: then the device has no pause between the two. Two at most.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, overload

from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, EncoderIdError, VisiontowerError
from encoders.contract.values import Encoded, Floats, Pixels, TokenIds
from service.errors import DeadlineExceeded, DeviceLost
from service.scheduling.batch import Begun, Outcome, begin, try_out, works
from service.scheduling.queue import BatchKey, Ceiling, Formed, ImageKey, Queue, TextKey

R = TypeVar("R")
_PATIENCE = 4
"""A batch waits for what comes no longer than so many forwards like its model's last one take."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer(Generic[R]):
    """One item's row, and the seconds it waited and its batch ran."""

    row: R
    queue_s: float
    forward_s: float


@dataclass(frozen=True)
class Report:
    """What is worth counting about one batch; given to `observe` on the device thread.

    left: how many more of its key waited and were left to the next batch or another lane.
    forward_s: from its beginning until its rows were there; of a batch begun behind another, with what was left of that
        one. It errs to too long: the pace is never taken to be better than it is.
    """

    key: BatchKey
    items: int
    left: int
    queue_s: Sequence[float]
    forward_s: float


@dataclass
class _Running:
    """A batch that was begun. started: when, on the batcher's clock."""

    formed: Formed["_Item"]
    started: float
    begun: Begun


@dataclass
class _Item:
    payload: Any
    future: asyncio.Future[Any]
    ticket: int | None = None  # in the queue; under _wake


class Batcher:
    """Queues work for the encoders and runs it, batch after batch, on its own threads.

    All methods but the threads' own are for the event loop it was started on.
    """

    def __init__(
        self,
        *,
        ceiling: Ceiling,
        clock: Callable[[], float],
        begin: Callable[[Encoder, BatchKey, Sequence[Any]], Begun] = begin,
        observe: Callable[[Report], None] = lambda report: None,
        on_lost: Callable[[], None] = lambda: None,
        shares_cores: bool = False,
        lanes: int = 1,
        runs_alone: Callable[[BatchKey], bool] = lambda key: False,
        take_cores: Callable[[int], None] = lambda part: None,
    ) -> None:
        """shares_cores: forwards run on the cores that decode, so a batch waits for what comes (batching.py).

        lanes: forwards that run side by side, at most. runs_alone: what may have nothing beside it. take_cores: called
        on a lane's thread ahead of a forward; from then on it computes on that part of the cores, 1 being all of them.
        """
        self._clock = clock
        self._begin_forward = begin
        self._observe = observe
        self._on_lost = on_lost
        self._encoders: dict[str, Encoder] = {}
        self._healthy: dict[str, bool] = {}
        self._wake = threading.Condition()
        self._took: dict[str, float] = {}  # seconds of each model's last forward
        patience = _PATIENCE if shares_cores else 0
        self._queue: Queue[_Item] = Queue(  # under _wake
            ceiling=ceiling, patience=lambda key: patience * self._took.get(key.model, 0.0), takers=lanes
        )
        self._calls: deque[Callable[[], None]] = deque()  # under _wake
        self._stopping = False  # under _wake
        self._open: set[asyncio.Future[Any]] = set()  # all that somebody waits for; of the event loop
        self._refusal: VisiontowerError | None = None
        self._lanes = lanes
        self._runs_alone = runs_alone
        self._take_cores = take_cores
        self._busy: dict[int, float] = {}  # since when each lane at work has been in what it is in; under _wake
        self._is_alone = False  # whether nothing may begin beside what runs; under _wake
        self._running_lanes = 0  # of the event loop
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Start the threads."""
        self._loop = asyncio.get_running_loop()
        self._running_lanes = self._lanes
        for lane in range(self._lanes):
            threading.Thread(target=self._main, args=(lane,), name=f"device {lane}", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """Whether all device threads run."""
        return self._running_lanes == self._lanes

    @property
    def busy_s(self) -> float:
        """For how many seconds a thread has been in the batch or call it is in; 0 when all wait for one."""
        with self._wake:
            since = min(self._busy.values(), default=None)
        return 0.0 if since is None else max(0.0, self._clock() - since)

    def is_healthy(self, model: str) -> bool:
        """Whether this model's last forward worked, or after a failed one, a forward of a known good image."""
        return self._healthy.get(model, False)

    def snapshot(self, model: str) -> tuple[int, float]:
        """How many images of this model wait, and for how many seconds its oldest item has."""
        with self._wake:
            since = self._queue.oldest_since(model)
            return self._queue.waiting_images(model), 0.0 if since is None else max(0.0, self._clock() - since)

    async def add(self, model: str, load: Callable[[], Encoder]) -> Encoder:
        """Load an encoder on a device thread and try it once with image and text. Raises what either raises."""
        encoder = await self.call(partial(_load_and_try, load))
        if encoder.spec.id != model:
            raise EncoderIdError(f"The loader of '{model}' gave an encoder that calls itself '{encoder.spec.id}'.")
        self._encoders[model] = encoder
        self._healthy[model] = True
        return encoder

    async def remove(self, model: str) -> None:
        """Let go of an encoder, of which nothing waits, between two batches."""
        await self.call(partial(self._encoders.pop, model))
        self._healthy.pop(model, None)

    async def probe(self, model: str) -> bool:
        """Run a known good image through the model, ahead of the queue; gives and keeps its health."""
        encoder = self._encoders[model]
        self._healthy[model] = await self.call(partial(works, encoder))
        return self._healthy[model]

    @overload
    def submit(self, key: ImageKey, payload: Pixels, *, deadline: float) -> asyncio.Future[Answer[Encoded]]: ...
    @overload
    def submit(self, key: TextKey, payload: TokenIds, *, deadline: float) -> asyncio.Future[Answer[Floats]]: ...
    def submit(self, key: BatchKey, payload: Any, *, deadline: float) -> asyncio.Future[Any]:
        """Queue one image's pixels or one text's ids; cancelling the future takes it out of the queue.

        deadline: on the clock handed in; past it the item is not run.

        The future ends with an Answer, EncoderFailed, DeadlineExceeded, or whatever `abandon` or the thread's end
        gives. Raises DeviceLost, or what everything was abandoned with.
        """
        item = self._item(payload)
        self._put(key, item, deadline)
        return item.future

    def submit_made(
        self, key: ImageKey, make: Callable[[], Pixels], *, pool: Executor, deadline: float
    ) -> asyncio.Future[Answer[Encoded]]:
        """As `submit`, of what `make` gives: it runs on the pool, and its item joins the queue from there.

        What it raises is the future's error. Not called if the future is cancelled before its turn.
        """
        item = self._item(None)

        def work() -> None:
            try:
                if not item.future.done():
                    item.payload = make()
            except Exception as error:
                self._tell(_fail, [item.future], error)
            with self._wake:
                self._queue.arrived(key)
                if item.payload is None:
                    self._notify()
                else:
                    self._put(key, item, deadline)

        with self._wake:
            self._queue.expect(key)
        pool.submit(work)
        return item.future

    def _item(self, payload: Any) -> _Item:
        """Not queued yet. Raises as `_promise`."""
        item = _Item(payload, self._promise())
        item.future.add_done_callback(partial(self._forget, item))
        return item

    def _promise(self) -> asyncio.Future[Any]:
        """A future that `abandon` knows of. Raises DeviceLost, or what everything was abandoned with."""
        if self._refusal is not None:
            raise self._refusal
        if not self.is_alive:
            raise DeviceLost
        future: asyncio.Future[Any] = self._loop.create_future()
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def _put(self, key: BatchKey, item: _Item, deadline: float) -> None:
        """Queue the item unless nobody waits for it any more. On any thread."""
        with self._wake:
            if not item.future.done():
                item.ticket = self._queue.put(key, item, now=self._clock(), deadline=deadline)
            self._notify()

    def _notify(self) -> None:
        """Wake the threads if there is a batch for one, or the first item of one to wait with. Under _wake."""
        if len(self._queue) == 1 or self._queue.ripe_in(self._clock()) == 0:
            self._wake.notify_all()

    def abandon(self, error: VisiontowerError) -> None:
        """Fail everything that waits or runs, and all that is still to come; what the device gives is dropped.

        To come: an image of an admitted request may be on its way through decode and preprocess.
        """
        self._refusal = error
        _fail(list(self._open), error)
        with self._wake:
            self._queue.clear()

    async def stop(self, *, timeout_s: float) -> bool:
        """End the threads after what they have begun; False if one is stuck. Waiting work fails with DeviceLost."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            _log.error("the device thread is stuck in a forward")
            return False
        return True

    def _forget(self, item: _Item, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            with self._wake:
                if item.ticket is not None and self._queue.discard(item.ticket):
                    self._notify()  # it may have been the one that the next batch waited with

    async def call(self, function: Callable[[], R]) -> R:
        """Run a function on a device thread, ahead of the queue, after what has begun and with nothing beside it."""
        future: asyncio.Future[R] = self._promise()

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                self._tell(_fail, [future], error)
            else:
                self._tell(_resolve, future, result)

        with self._wake:
            self._calls.append(run)
            self._wake.notify_all()
        return await future

    # From here on: the device threads.

    def _main(self, lane: int) -> None:
        try:
            while work := self._next(lane):
                work()
        except BaseException:
            # Exception in our own code, or SystemExit and the like from a library: either way the device is ownerless.
            _log.critical("the device thread has ended", exc_info=True)
        finally:
            self._tell(self._on_end)

    def _next(self, lane: int) -> Callable[[], None] | None:
        """The next thing to do, waited for; None when told to stop."""
        with self._wake:
            if self._busy.pop(lane, None) is not None:
                self._wake.notify_all()  # who must be alone may have waited for this
            while not self._stopping:
                due_in = self._due_in(lane)
                if due_in != 0:
                    self._wake.wait(due_in)
                elif work := self._take(lane):
                    self._busy[lane] = self._clock()
                    return work
        return None

    def _due_in(self, lane: int) -> float | None:
        """For how many seconds a free lane had better wait; 0 if it may begin, None until woken. Under _wake."""
        if lane > len(self._busy):
            return None  # another is free that comes first, so that what is alone is always on the same thread
        if self._busy and (self._is_alone or self._calls):
            return None
        if self._calls:
            return 0.0
        ripe_in = self._queue.ripe_in(self._clock())
        if ripe_in == 0 and self._busy and self._runs_alone(self._queue.next_key):
            return None
        return ripe_in

    def _take(self, lane: int) -> Callable[[], None] | None:
        """What is to be begun now; None if all of the next batch came too late. Under _wake."""
        if self._calls:
            self._is_alone = True
            return self._calls.popleft()
        is_all_there_is = not self._busy and len(self._queue) + self._queue.coming == 1
        is_alone = is_all_there_is or self._runs_alone(self._queue.next_key)
        formed = self._form(among=self._lanes - len(self._busy))
        if not formed.batch:
            return None
        self._is_alone = is_alone
        if len(self._queue):
            self._wake.notify_all()  # it is another lane's to wait with
        return partial(self._run, lane, formed, 1 if self._is_alone else self._lanes)

    def _form(self, *, among: int = 1) -> Formed[_Item]:
        """Under _wake."""
        formed = self._queue.form_batch(self._clock(), among=among)
        for late in formed.expired:
            self._tell(_fail, [late.item.future], DeadlineExceeded())
        return formed

    def _run(self, lane: int, formed: Formed[_Item], part: int) -> None:
        """Run the batch, and those that are begun behind it: none is on the device any more when this returns."""
        self._take_cores(part)
        running: _Running | None = self._begin(formed)
        while running is not None:
            following = self._begin_behind(running)
            self._finish(running)
            with self._wake:
                self._busy[lane] = self._clock()
            running = following

    def _begin(self, formed: Formed[_Item]) -> _Running:
        key = formed.batch[0].key
        started = self._clock()
        begun = self._begin_forward(self._encoders[key.model], key, [waiting.item.payload for waiting in formed.batch])
        return _Running(formed, started, begun)

    def _begin_behind(self, running: _Running) -> _Running | None:
        """The next batch, if this one still runs and the next is as large already: a smaller one had better grow."""
        if isinstance(running.begun, list):
            return None
        with self._wake:
            if self._stopping or self._calls or not self._queue.has_batch_of(len(running.formed.batch)):
                return None
            formed = self._form()
        return self._begin(formed) if formed.batch else None

    def _finish(self, running: _Running) -> None:
        batch = running.formed.batch
        key = batch[0].key
        outcomes = running.begun if isinstance(running.begun, list) else running.begun()
        self._took[key.model] = forward_s = self._clock() - running.started
        # One bad input must not take the server out of rotation: only if nothing worked is a known good image asked.
        worked = any(not isinstance(outcome, EncoderFailed) for outcome in outcomes)
        self._healthy[key.model] = worked or works(self._encoders[key.model])
        waits = [running.started - waiting.since for waiting in batch]
        self._observe(Report(key, len(batch), running.formed.left, waits, forward_s))
        futures = [waiting.item.future for waiting in batch]
        self._tell(_deliver, futures, outcomes, waits, forward_s)

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
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
        if not self._running_lanes:
            self._ended.set()
        if not told or not self._running_lanes:
            self.abandon(DeviceLost())
        if not told:
            self._on_lost()


def _load_and_try(load: Callable[[], Encoder]) -> Encoder:
    encoder = load()
    try_out(encoder)
    return encoder


# On the event loop again. A future may be done already: its caller left, or the drain deadline passed.


def _deliver(
    futures: Sequence[asyncio.Future[Any]], outcomes: Sequence[Outcome], waits: Sequence[float], forward_s: float
) -> None:
    for future, outcome, queue_s in zip(futures, outcomes, waits, strict=True):
        if isinstance(outcome, VisiontowerError):
            _fail([future], outcome)
        else:
            _resolve(future, Answer(outcome, queue_s, forward_s))


def _resolve(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(futures: Sequence[asyncio.Future[Any]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
