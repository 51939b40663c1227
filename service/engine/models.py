"""The served models: which are on the device, who uses them, how well they do, and why a model failed to load.

Every load is planned first: weights, and one forward of one image or text beside the rest. If that does not fit, the
setting when_full says: `refuse`, or `evict` the model that has been idle for longest. A model that was in use just now
is never evicted, so two that do not fit together cannot push each other out with every request.

A model that failed to load is not tried again before some time has passed, longer each time. Until then a request for
it is refused at once. A retry takes room that is free, or that of a model nobody has asked for in a long time: it may
fail again.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderIdError, VisiontowerError
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Outputs
from encoders.memory.device import Memory
from service.errors import ModelDoesNotFit, ModelFailed, ModelWaitsForRoom, UnknownModel
from service.memory.budget import Budget
from service.memory.planner import Planner, Urgency
from service.memory.shape import ImageShape, Shape
from service.scheduling.device_threads import DeviceThreads
from service.scheduling.resident import Resident
from service.sizes import show_bytes
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import TRACE, UNTRACED

R = TypeVar("R")
Load = Callable[[str], Encoder]
"""Encoder id -> the encoder, ready to run. Called on a thread that ends with it."""

_log = logging.getLogger(__name__)
_FIRST_RETRY_S = 30.0
_LONGEST_RETRY_S = 960.0
_RETRY_EVICTS_IDLE_S = 960.0
"""A load that may fail again takes the place only of a model that nobody has asked for in as long."""
_PROBE_EVERY_S = 5.0
"""A model that fails is not tried again before."""
_PROBE_WAIT_S = 0.5
"""A readiness check waits for the tries of the models that fail; it has to answer within a second."""
_SHAPES = 10_000


@dataclass(frozen=True)
class ModelState:
    """How a served model does.

    state: `ready`; `failing`, its last forward did not work; `hangs`, a forward of it has taken far too long;
    `loading`; `not loaded`; `failed`, it could not be loaded. reason: of `hangs` and `failed`. retry_in_s: until a
    request may try to load it again.
    """

    state: Literal["ready", "failing", "hangs", "loading", "not loaded", "failed"]
    reason: str | None = None
    retry_in_s: float | None = None

    @property
    def can_serve(self) -> bool:
        """Whether a request for it may be answered: one that is not loaded is loaded for its first request."""
        return self.state in ("ready", "loading", "not loaded")

    @property
    def trouble(self) -> str:
        """What there is to say against it, to follow its name."""
        about = {"failing": "fails", "hangs": "hangs", "failed": "could not be loaded"}.get(self.state, self.state)
        return about if self.reason is None else f"{about}: {self.reason}"


@dataclass(frozen=True)
class _Failure:
    """A load that failed. retry_at: on the clock; the pause before the next try grows."""

    reason: str
    retry_at: float
    pause_s: float


class Models:
    """Lives on the event loop."""

    def __init__(
        self,
        ids: tuple[str, ...],
        *,
        load: Load,
        memory: Memory,
        budget: Budget,
        planner: Planner,
        threads: DeviceThreads,
        metrics: Metrics,
        clock: Callable[[], float],
        when_full: Literal["refuse", "evict"],
        evict_idle_s: float,
    ) -> None:
        self.ids = ids
        self.specs: dict[str, EncoderSpec] = {}
        """Of every served model: as loaded; of one that never was, as its blueprint has it."""
        self._load = load
        self._memory = memory
        self._budget = budget
        self._planner = planner
        self._threads = threads
        self._metrics = metrics
        self._clock = clock
        self._when_full = when_full
        self._evict_idle_s = evict_idle_s
        self._residents: dict[str, Resident] = {}
        self._failures: dict[str, _Failure] = {}
        self._users: Counter[str] = Counter()
        self._in_use: Counter[Shape] = Counter()
        self._fits: dict[Shape, int] = {}  # shapes of which one item fits, as of a state of the budget
        self._left: dict[str, float] = {}  # when the last user of a loaded model left
        self._changing = asyncio.Lock()  # one load or eviction at a time
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._probed: dict[str, float] = {}  # when a failing model was last tried

    async def start(self) -> None:
        """Load the served models, in order; with `evict`, as many as fit, and the rest when they are asked for.

        Raises the errors of planning and loading: a model that does not work is fatal, and so is one that does not fit
        (ModelDoesNotFit) unless it may come later.
        """
        for place, model in enumerate(self.ids, start=1):
            _log.info("loading %s (%d of %d)", model, place, len(self.ids))
            try:
                await self._put(model)
            except ModelWaitsForRoom as error:
                _log.info("%s is left for later: %s", model, error)
            except Exception as error:
                _log.critical(
                    "cannot serve %s: %s", model, error, exc_info=None if isinstance(error, VisiontowerError) else error
                )
                raise

    def id_of(self, model: str | None) -> str:
        """The id of a served model, the first one's if None. Raises UnknownModel."""
        if model is None:
            return self.ids[0]
        if model not in self.ids:
            raise UnknownModel(model, served=self.ids)
        return model

    def state(self, model: str) -> ModelState:
        """How it does now."""
        resident = self._residents.get(model)
        if resident is not None:
            if resident.hang is not None:
                return ModelState("hangs", str(resident.hang))
            is_well = resident.is_healthy and self._threads.is_alive and self._threads.refusal is None
            return ModelState("ready" if is_well else "failing")
        if model in self._loading:
            return ModelState("loading")
        failure = self._failures.get(model)
        if failure is not None:
            return ModelState("failed", failure.reason, max(0.0, failure.retry_at - self._clock()))
        return ModelState("not loaded")

    async def probe(self, models: Sequence[str]) -> None:
        """Try those that fail once more. Waits for that for a moment only: the device may be at work, or hang.

        However often this is asked, a model is tried once at a time, and not again before some seconds have passed.
        """
        now = self._clock()
        for model in models:
            resident = self._residents.get(model)
            is_due = now - self._probed.get(model, -math.inf) >= _PROBE_EVERY_S
            if resident is not None and not resident.is_healthy and model not in self._probes and is_due:
                self._probed[model] = now
                self._probes[model] = asyncio.create_task(self._probe(model, resident))
        if probes := [self._probes[model] for model in models if model in self._probes]:
            await asyncio.wait(probes, timeout=_PROBE_WAIT_S)

    async def _probe(self, model: str, resident: Resident) -> None:
        try:
            with suppress(VisiontowerError):  # of a device that hangs, or has ended: its own state says so
                await self._threads.call(resident.probe)
        finally:
            del self._probes[model]

    @asynccontextmanager
    async def using(self, model: str, *shapes: Shape) -> AsyncIterator[Resident]:
        """The encoder on the device, loaded if need be and kept for the block, with room for forwards of these shapes.

        Raises ModelFailed, ModelDoesNotFit, ModelWaitsForRoom, ImageDoesNotFit, or the error of a load that fails now.
        """
        counted: list[Shape] = []
        self._users[model] += 1
        try:
            while model not in self._residents:
                trace = TRACE.get()
                with trace.stage("load") if trace else UNTRACED:
                    await self._put_once(model)
            for shape in shapes:
                if self._fits.get(shape) != self._budget.state:
                    await self._require_room(shape)
                self._in_use[shape] += 1  # now that it fits: every load leaves room for the shapes in use
                counted.append(shape)
            yield self._residents[model]
        finally:
            self._users[model] -= 1
            for shape in counted:
                self._in_use[shape] -= 1
                if not self._in_use[shape]:
                    del self._in_use[shape]
            self._left[model] = self._clock()

    async def _require_room(self, shape: Shape) -> None:
        """See that one item of this shape fits; with `evict`, let idle models make room for it.

        Raises ImageDoesNotFit or ModelDoesNotFit.
        """
        allowance = self._budget.allowance(shape)
        if allowance.fits:
            if len(self._fits) > _SHAPES:
                self._fits.clear()
            self._fits[shape] = allowance.state
            return

        async def evict() -> None:
            async with self._changing:
                await self._make_room(self._budget.need(shape), sparing=shape.model, idle_s=self._evict_idle_s)

        if self._when_full == "evict":
            with suppress(ModelDoesNotFit, ModelWaitsForRoom):
                await _to_its_end(asyncio.create_task(evict()))
                return
        if isinstance(shape, ImageShape):
            self._metrics.refused()
            raise await self._planner.refusal(shape)
        needed, room = self._budget.need(shape), self._budget.room
        raise ModelDoesNotFit(shape.model, needed=needed, limit=self._budget.limit, room=room)

    async def _put_once(self, model: str) -> None:
        """Load a model; whoever asks meanwhile waits for the same load. Raises as `using`."""
        failure = self._failures.get(model)
        if failure is not None and self._clock() < failure.retry_at:
            wait_s = failure.retry_at - self._clock()
            raise ModelFailed(model, reason=failure.reason, retry_after_s=math.ceil(wait_s))

        async def put() -> None:
            try:
                await self._put(model)
            finally:
                del self._loading[model]

        if model not in self._loading:
            self._loading[model] = asyncio.create_task(put())
        await _to_its_end(self._loading[model])

    async def _put(self, model: str) -> None:
        async with self._changing:
            await self._plan_and_load(model)

    async def _plan_and_load(self, model: str) -> None:
        """Plan, make room, load, try. Remembers a load that fails."""
        try:
            needed = await self._needed(model)
        except Exception as error:
            self._failed(model, error)
            raise
        idle_s = max(self._evict_idle_s, _RETRY_EVICTS_IDLE_S if model in self._failures else 0.0)
        await self._make_room(needed, sparing=model, idle_s=idle_s)
        self._budget.hold(model, self.specs[model].weights_bytes)
        started = self._clock()
        try:
            await self._threads.call(lambda: None)  # a batch that was planned with more room has ended by now
            encoder = await _on_its_own_thread(partial(self._load, model))
            if encoder.spec.id != model:
                raise EncoderIdError(f"The loader of '{model}' gave an encoder that calls itself '{encoder.spec.id}'.")
            resident = Resident(encoder)
            await self._threads.call(resident.try_out)
        except BaseException as error:
            self._budget.drop(model)
            if isinstance(error, Exception):
                self._failed(model, error)
            raise
        self._failures.pop(model, None)
        self._metrics.changed(model, "loaded")
        self._residents[model] = resident
        self.specs[model] = spec = resident.spec
        self._left[model] = self._clock()
        self._budget.hold(model, spec.weights_bytes)
        _log.info("loaded %s on %s in %s in %.1f s", model, spec.device, spec.dtype, self._clock() - started)

    async def _needed(self, model: str) -> int:
        """Bytes of the weights and of one forward, of this model or of those in use. Keeps the blueprint's spec."""
        spec = (await self._planner.blueprint(model)).spec
        self.specs.setdefault(model, spec)
        pooled, urgency = Outputs(pooled=True), Urgency.LOAD
        shapes: list[Shape] = [await self._planner.image_shape(model, spec.image_size, pooled, urgency=urgency)]
        if spec.has_text:
            shapes.append(await self._planner.text_shape(model, urgency=urgency))
        return spec.weights_bytes + max(self._budget.need(shape) for shape in (*shapes, *self._in_use))

    def _failed(self, model: str, error: Exception) -> None:
        before = self._failures.get(model)
        pause_s = _FIRST_RETRY_S if before is None else min(_LONGEST_RETRY_S, 2 * before.pause_s)
        self._failures[model] = _Failure(str(error), self._clock() + pause_s, pause_s)
        self._metrics.changed(model, "failed")
        _log.error("%s could not be loaded; next try in %.0f s: %s", model, pause_s, error)

    async def _make_room(self, needed: int, *, sparing: str, idle_s: float) -> None:
        """Evict models that have been idle for `idle_s`, the longest idle first, until `needed` bytes are free.

        Raises ModelDoesNotFit, or ModelWaitsForRoom if it may fit later.
        """
        others = [model for model in self._residents if model != sparing]
        own = self._budget.room + sum(self._residents[model].spec.weights_bytes for model in others)
        if needed > (own if self._when_full == "evict" else self._budget.room):
            raise ModelDoesNotFit(sparing, needed=needed, limit=self._budget.limit, room=self._budget.room)
        while needed > self._budget.room:
            idle = sorted((self._left[model], model) for model in others if not self._users[model])
            wait_s = idle_s - (self._clock() - idle[0][0]) if idle else idle_s
            if wait_s > 0 or not idle:
                raise ModelWaitsForRoom(
                    sparing, needed=needed, room=self._budget.room, retry_after_s=math.ceil(max(0.0, wait_s))
                )
            others.remove(idle[0][1])
            await self._evict(idle[0][1])

    async def _evict(self, model: str) -> None:
        _log.info("evicting %s: %s", model, show_bytes(self._residents[model].spec.weights_bytes))
        self._metrics.changed(model, "evicted")
        del self._residents[model]  # a batch of it whose callers left may still run; nothing does during the call
        try:
            await self._threads.call(self._memory.release)
        finally:  # it is gone, also if the device has ended or hangs
            self._budget.drop(model)


async def _on_its_own_thread(function: Callable[[], R]) -> R:
    """Run it on a thread that ends with it, and OpenMP's team of that thread too: only the first lane's is to stay."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="load")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, function)
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


async def _to_its_end(task: asyncio.Task[None]) -> None:
    """Wait for a change that goes on if the request that asked for it leaves: half a load is nobody's memory."""
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, also if nobody is left
    await asyncio.shield(task)
