"""Which encoders are on the device. Knows the budget and the order of things; what a forward is, batcher.py knows.

Every load is planned first: weights, and one forward of one image or text beside what is there. If that does not fit,
the setting when_full says: `refuse`, or `evict` the encoder that has been idle for longest. One that was in use just
now is never evicted, so two that do not fit together cannot push each other out with every request.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, TypeVar

from encoders.contract.encoder import Encoder
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Outputs
from encoders.memory.device import Memory
from service.errors import ModelDoesNotFit, ModelWaitsForRoom, UnknownModel
from service.memory.budget import Budget
from service.memory.planner import Planner
from service.scheduling.device_threads import Batcher
from service.scheduling.queue import BatchKey, ImageKey, TextKey
from service.sizes import show_bytes

R = TypeVar("R")
Load = Callable[[str], Encoder]
"""Encoder id -> the encoder, ready to run. Called on a thread that ends with it."""

_log = logging.getLogger(__name__)


class Fleet:
    """The served encoders, on the device or not. Lives on the event loop."""

    def __init__(
        self,
        models: tuple[str, ...],
        *,
        load: Load,
        memory: Memory,
        budget: Budget,
        planner: Planner,
        batcher: Batcher,
        clock: Callable[[], float],
        when_full: Literal["refuse", "evict"],
        evict_idle_s: float,
    ) -> None:
        self.specs: dict[str, EncoderSpec] = {}
        """Of every served model: as loaded, or where it has never been, as its blueprint has it."""
        self._models = models
        self._load = load
        self._memory = memory
        self._budget = budget
        self._planner = planner
        self._batcher = batcher
        self._clock = clock
        self._when_full = when_full
        self._evict_idle_s = evict_idle_s
        self._loaded: dict[str, Encoder] = {}
        self._users: Counter[str] = Counter()
        self._left: dict[str, float] = {}  # when the last user of a loaded model left
        self._changing = asyncio.Lock()  # one load or eviction at a time
        self._loading: dict[str, asyncio.Task[None]] = {}

    @property
    def loaded(self) -> list[str]:
        """The models that are on the device."""
        return list(self._loaded)

    async def start(self) -> None:
        """Load what is served, in order; with `evict`, as much of it as fits, and the rest when it is asked for.

        Raises what planning and loading raise: an encoder that does not work is fatal, and so is one that does not fit
        (ModelDoesNotFit) unless it may come later.
        """
        for place, model in enumerate(self._models, start=1):
            _log.info("loading %s (%d of %d)", model, place, len(self._models))
            try:
                await self._put_once(model)
            except ModelWaitsForRoom as error:
                _log.info("%s is left for later: %s", model, error)
            except Exception as error:
                _log.critical("cannot serve %s: %s", model, error)
                raise

    def id_of(self, model: str | None) -> str:
        """The id of a served model, the first one's if None. Raises UnknownModel."""
        if model is None:
            return self._models[0]
        if model not in self._models:
            raise UnknownModel(model, served=self._models)
        return model

    @asynccontextmanager
    async def using(self, model: str) -> AsyncIterator[Encoder]:
        """The encoder, loaded if need be, and kept for the block. Raises ModelDoesNotFit or ModelWaitsForRoom."""
        self._users[model] += 1
        try:
            while model not in self._loaded:
                await self._put_once(model)
            yield self._loaded[model]
        finally:
            self._users[model] -= 1
            self._left[model] = self._clock()

    async def require_room(self, key: BatchKey) -> bool:
        """Whether one item of this key fits, with `evict` after others have made room."""
        if self._budget.need(key) <= self._budget.room:
            return True
        if self._when_full == "refuse":
            return False

        async def evict() -> None:
            async with self._changing:
                await self._make_room(self._budget.need(key), sparing=key.model)

        try:
            await _to_its_end(asyncio.create_task(evict()))
        except (ModelDoesNotFit, ModelWaitsForRoom):
            return False
        return True

    async def _put_once(self, model: str) -> None:
        """Load a model; whoever asks meanwhile waits for the same load."""

        async def put() -> None:
            try:
                async with self._changing:
                    await self._put(model)
            finally:
                del self._loading[model]

        if model not in self._loading:
            self._loading[model] = asyncio.create_task(put())
        await _to_its_end(self._loading[model])

    async def _put(self, model: str) -> None:
        """Plan, make room, load, try."""
        spec = (await self._planner.blueprint(model)).spec
        self.specs.setdefault(model, spec)
        first = ImageKey(model, spec.image_size, Outputs(pooled=True))
        keys: list[BatchKey] = [first, *([TextKey(model)] if spec.has_text else [])]
        for key in keys:
            await self._planner.cost(key)
        working = max(self._budget.need(key) for key in keys)
        await self._make_room(spec.weights_bytes + max(working, self._budget.spoken_for), sparing=model)
        self._budget.hold(model, spec.weights_bytes)
        try:
            await self._batcher.call(lambda: None)  # a batch that was planned with more room has ended by now
            started = self._clock()
            encoder = await _on_its_own_thread(partial(self._load, model))
            await self._batcher.add(model, lambda: encoder)
        except BaseException:
            self._budget.drop(model)
            raise
        self._loaded[model] = encoder
        self.specs[model] = encoder.spec
        self._left[model] = self._clock()
        self._budget.hold(model, encoder.spec.weights_bytes)
        seconds = self._clock() - started
        _log.info("loaded %s on %s in %s in %.1f s", model, encoder.spec.device, encoder.spec.dtype, seconds)

    async def _make_room(self, needed: int, *, sparing: str) -> None:
        """Evict until `needed` bytes are free. Raises ModelDoesNotFit, or ModelWaitsForRoom if only the idle may go."""
        others = [model for model in self._loaded if model != sparing]
        own = self._budget.room + sum(self._loaded[model].spec.weights_bytes for model in others)
        if needed > (own if self._when_full == "evict" else self._budget.room):
            raise ModelDoesNotFit(sparing, needed=needed, limit=self._budget.limit, room=self._budget.room)
        while needed > self._budget.room:
            idle = sorted((self._left[m], m) for m in self._loaded if m != sparing and not self._users[m])
            if not idle or self._clock() - idle[0][0] < self._evict_idle_s:
                wait = self._evict_idle_s - (self._clock() - idle[0][0]) if idle else self._evict_idle_s
                raise ModelWaitsForRoom(sparing, needed=needed, room=self._budget.room, retry_after_s=math.ceil(wait))
            await self._evict(idle[0][1])

    async def _evict(self, model: str) -> None:
        _log.info("evicting %s: %s", model, show_bytes(self._loaded[model].spec.weights_bytes))
        del self._loaded[model]
        await self._batcher.remove(model)
        await self._batcher.call(partial(self._memory.release))
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
