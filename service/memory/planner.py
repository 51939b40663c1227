"""Works out on a thread of its own what forwards will take, from the encoders' blueprints. Loads no weights.

A shape that nobody has asked for before takes some tenths of a second; only the request that brought it waits. Later
requests look it up.

The thread makes one plan at a time, of one shape. Loads go first, then requests, then what is planned ahead, then the
tables of /vram, which are asked for shape by shape. A plan that nobody waits for any more is dropped before it begins.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Generic, TypeVar

from encoders.contract.cost import Cost
from encoders.contract.encoder import Blueprint
from encoders.contract.errors import EncoderFailed, VisiontowerError
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.memory.plan import Row, Search, rows, search_largest
from service.caller import CALLER
from service.errors import ImageDoesNotFit, Overloaded
from service.line import Line, Place, Rank
from service.memory.budget import Budget
from service.memory.shape import ImageShape, Shape, TextShape
from service.telemetry.tracing import TRACE, UNTRACED

R = TypeVar("R")
_log = logging.getLogger(__name__)

MakeBlueprint = Callable[[str, str | None], Blueprint]
"""Encoder id and dtype (None: the one it is served in) -> its blueprint."""

_SHAPES = 10_000
"""Shapes that are kept, the latest used."""
_TABLES = 16
"""Tables that are worked on at once, at most: one shape of each waits in the line."""
_PLANS_A_SECOND = 4
"""About how many; for Retry-After."""


class Urgency(IntEnum):
    """Whose plans go first. ADVICE: what an error names beside the fact. AHEAD: before anybody asks."""

    LOAD = 0
    REQUEST = 1
    ADVICE = 2
    AHEAD = 3
    TABLE = 4


@dataclass(eq=False)
class _Plan(Generic[R]):
    """A plan under way. caller: who asked first. askers: how many wait for it now."""

    place: Place[R]
    rank: Rank
    caller: str | None
    askers: int = 0


class Planner:
    """Lives on the event loop; the work is done on one thread beside it. device: cpu or cuda.

    places: new shapes that requests may wait for at once. Every question raises ShuttingDown once the planner is
    closed.
    """

    def __init__(self, blueprint: MakeBlueprint, *, device: str, budget: Budget, places: int) -> None:
        self._make = blueprint
        self._device = device
        self._budget = budget
        self._places = places
        self._tables = 0
        self._line = Line("planner")
        self._blueprints: dict[Hashable, Blueprint] = {}
        self._shapes: OrderedDict[Hashable, Shape] = OrderedDict()
        self._under_way: dict[Hashable, _Plan[Any]] = {}

    async def blueprint(self, model: str) -> Blueprint:
        """The model's blueprint, for a load. Raises EncoderIdError or WeightsError."""
        return await self._blueprint(model, None, (Urgency.LOAD,))

    async def image_shape(
        self, model: str, size: ImageSize, outputs: Outputs, *, urgency: Urgency = Urgency.REQUEST
    ) -> ImageShape:
        """The shape of such images. Raises EncoderFailed if the blueprint cannot run.

        A request for a new one raises Overloaded if too many wait already, in all or of the same caller. Callers take
        turns: of one who asks for many, each waits behind the first of another.
        """
        known = self._shapes.get((model, None, size, outputs))
        if isinstance(known, ImageShape):
            self._shapes.move_to_end((model, None, size, outputs))
            return known
        trace = TRACE.get()
        with trace.stage("plan") if trace else UNTRACED:
            return await self._image_shape(model, None, size, outputs, (urgency,))

    async def text_shape(self, model: str, *, urgency: Urgency = Urgency.REQUEST) -> TextShape:
        """The shape of the model's texts. Raises EncoderFailed if the blueprint cannot run."""
        known = self._shapes.get(model)
        if isinstance(known, TextShape):
            self._shapes.move_to_end(model)
            return known
        blueprint = await self._blueprint(model, None, (urgency,))

        def work_out() -> TextShape:
            return TextShape(model, _cost_by(partial(blueprint.text_cost, device=device), model))

        device = self._device
        return await self._learn(model, work_out, (urgency,), keep=self._shapes)

    async def rehearse(self, specs: Iterable[EncoderSpec]) -> None:
        """Plan the shapes that are asked for most, so that not even the first such request waits."""
        for spec in specs:
            tokens, both = Outputs(tokens=TokenKind.HIDDEN), Outputs(tokens=TokenKind.HIDDEN, pooled=True)
            dense = [Outputs(tokens=TokenKind.DENSE, pooled=True)] if spec.dense and spec.has_text else []
            for outputs in (tokens, both, *dense):
                await self.image_shape(spec.id, spec.image_size, outputs, urgency=Urgency.AHEAD)

    async def table(
        self,
        model: str,
        sizes: Sequence[ImageSize],
        batches: Sequence[int],
        outputs: Outputs,
        *,
        dtypes: Sequence[str | None],
    ) -> list[tuple[EncoderSpec, Row, ImageSize | None]]:
        """A row for each dtype, size and batch: the spec in that dtype, the plan, and the largest size for that batch.

        The room is the budget's beside the other encoders that are loaded. Raises EncoderFailed, and Overloaded if too
        many tables are asked for.
        """
        if self._tables >= _TABLES:
            raise Overloaded(what="tables of memory", waiting=self._tables, limit=_TABLES, retry_after_s=_TABLES)
        overhead = self._budget.overhead
        room = self._budget.room + overhead.context + self._budget.held(model)
        found = []
        self._tables += 1
        try:
            for dtype in dtypes:
                spec = (await self._blueprint(model, dtype, (Urgency.TABLE,))).spec
                free = room - overhead.context - spec.weights_bytes
                cost_of = partial(self._cost, model, dtype, outputs, Urgency.TABLE)
                largest = {}
                for batch in dict.fromkeys(batches):
                    search = search_largest(spec, batch=batch, overhead=overhead, free=free, like=spec.image_size)
                    largest[batch] = await _driven(search, cost_of)
                for size in sizes:
                    planned = rows(spec, size, await cost_of(size), batches, overhead=overhead, room=room)
                    found += [(spec, row, largest[row.prediction.batch]) for row in planned]
        finally:
            self._tables -= 1
        return found

    async def refusal(self, shape: ImageShape) -> ImageDoesNotFit:
        """The error for a shape that does not fit: it names the largest resolution that does."""
        room = self._budget.room
        blueprint = await self._blueprint(shape.model, None, (Urgency.ADVICE,))
        free = room - self._budget.excess(shape.model, self._budget.predicted(shape, 1))
        largest = None
        for like in (shape.size, blueprint.spec.image_size):  # of the request's proportions, or else of the model's
            search = search_largest(
                blueprint.spec, batch=1, overhead=self._budget.overhead, free=free, like=like, at_most=shape.size
            )
            cost_of = partial(self._cost, shape.model, None, shape.outputs, Urgency.ADVICE)
            largest = largest or await _driven(search, cost_of)
        return ImageDoesNotFit(
            model=shape.model,
            resolution=shape.size,
            predicted=self._budget.need(shape),
            room=room,
            budget=self._budget.total,
            largest=largest,
        )

    def close(self) -> None:
        """Take no more; the thread ends with the plans that somebody waits for."""
        self._line.close()

    async def _cost(self, model: str, dtype: str | None, outputs: Outputs, urgency: Urgency, size: ImageSize) -> Cost:
        known = self._shapes.get((model, dtype, size, outputs))
        return (known or await self._image_shape(model, dtype, size, outputs, (urgency,))).cost

    async def _image_shape(
        self, model: str, dtype: str | None, size: ImageSize, outputs: Outputs, rank: Rank
    ) -> ImageShape:
        """The shape, in another dtype than the served one too: its cost is that dtype's."""
        blueprint = await self._blueprint(model, dtype, rank)
        device = self._device

        def work_out() -> ImageShape:
            return ImageShape(
                model, size, outputs, _cost_by(partial(blueprint.cost, size, outputs, device=device), model)
            )

        name = (model, dtype, size, outputs)
        if rank[0] == Urgency.REQUEST:
            rank = (*rank, self._turn(name))
        return await self._learn(name, work_out, rank, keep=self._shapes)

    def _turn(self, name: Hashable) -> int:
        """How many plans of the same caller go before this one. Raises Overloaded if that is too many.

        As of the memory for requests (account.py), a caller gets half of the places that others leave free.
        """
        caller = CALLER.get()
        by_caller = Counter(plan.caller for plan in self._under_way.values() if plan.rank[0] == Urgency.REQUEST)
        own, total = by_caller[caller], by_caller.total()
        free = self._places - (total - own)
        most = min(free, max(1, free // 2))
        if name not in self._under_way and own >= most:
            what, waiting, limit = "new resolutions", total, self._places
            if total < self._places:
                what, waiting, limit = "new resolutions of one caller", own, most
            retry_after_s = max(1, waiting // _PLANS_A_SECOND)
            raise Overloaded(what=what, waiting=waiting, limit=limit, retry_after_s=retry_after_s)
        return own

    async def _blueprint(self, model: str, dtype: str | None, rank: Rank) -> Blueprint:
        known = self._blueprints.get((model, dtype))
        if known is not None:
            return known
        return await self._learn((model, dtype), partial(self._make, model, dtype), rank, keep=self._blueprints)

    async def _learn(
        self, name: Hashable, function: Callable[[], R], rank: Rank, *, keep: MutableMapping[Hashable, Any]
    ) -> R:
        """Make a plan, and keep it by its name; whoever asks meanwhile waits for the same one."""
        plan = self._under_way.get(name)
        if plan is None:
            plan = self._under_way[name] = _Plan(self._line.put(function, rank=rank), rank, CALLER.get())
            plan.place.answer.add_done_callback(partial(self._learnt, name, plan, keep))
        elif rank < plan.rank:
            plan.rank = rank
            self._line.move_up(plan.place, rank)
        answer: asyncio.Future[R] = plan.place.answer
        plan.askers += 1
        try:
            return await asyncio.shield(answer)  # the first to ask may leave; the others go on waiting
        finally:
            plan.askers -= 1
            if not plan.askers and not plan.place.has_begun:
                answer.cancel()
                self._under_way.pop(name, None)  # at once: whoever asks now takes a place of their own

    def _learnt(
        self, name: Hashable, plan: _Plan[R], keep: MutableMapping[Hashable, R], answer: "asyncio.Future[R]"
    ) -> None:
        if self._under_way.get(name) is plan:
            del self._under_way[name]
        if not answer.cancelled() and answer.exception() is None:  # heard, also if nobody is left
            keep[name] = answer.result()
            while len(self._shapes) > _SHAPES:
                self._shapes.popitem(last=False)


def _cost_by(work_out: Callable[[], Cost], model: str) -> Cost:
    """What a blueprint works out. Raises VisiontowerError, whatever it raised."""
    try:
        cost = work_out()
    except VisiontowerError:
        raise
    except Exception as error:
        _log.exception("the memory of a forward could not be worked out")
        name = type(error).__name__
        raise EncoderFailed(f"{model} failed with {name} when asked what a forward takes.", model=model) from error
    if not isinstance(cost, Cost):
        name = type(cost).__name__
        raise EncoderFailed(f"{model} gave {name} when asked what a forward takes, must be Cost.", model=model)
    return cost


async def _driven(search: Search, cost_of: Callable[[ImageSize], Awaitable[Cost]]) -> ImageSize | None:
    """What the search finds."""
    try:
        size = next(search)
        while True:
            size = search.send(await cost_of(size))
    except StopIteration as end:
        largest: ImageSize | None = end.value
        return largest
