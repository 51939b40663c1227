"""Works out on a thread of its own what forwards will take, from the encoders' blueprints. Loads no weights.

A shape that nobody has asked for before takes some tenths of a second; only the request that brought it waits. Later
requests look it up.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from encoders.contract.encoder import Blueprint
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.memory.plan import Row, largest_size, plan
from service.errors import ImageDoesNotFit, ShuttingDown
from service.memory.budget import Budget
from service.memory.shape import ImageShape, Shape, TextShape

R = TypeVar("R")
S = TypeVar("S", bound=Shape)

MakeBlueprint = Callable[[str, str | None], Blueprint]
"""Encoder id and dtype (None: the one it is served in) -> its blueprint."""

_SHAPES = 10_000
"""Shapes that are kept, the latest used."""


class Planner:
    """Lives on the event loop; the work is done on one thread beside it. device: cpu or cuda.

    Every question raises ShuttingDown once the planner is closed.
    """

    def __init__(self, blueprint: MakeBlueprint, *, device: str, budget: Budget) -> None:
        self._make = blueprint
        self._device = device
        self._budget = budget
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="planner")
        self._blueprints: dict[tuple[str, str | None], Blueprint] = {}
        self._shapes: OrderedDict[Hashable, Shape] = OrderedDict()
        self._under_way: dict[Hashable, asyncio.Task[Any]] = {}

    async def blueprint(self, model: str) -> Blueprint:
        """The model's blueprint. Raises EncoderIdError or WeightsError."""
        return await self._run(partial(self._blueprint, model, None))

    async def image_shape(self, model: str, size: ImageSize, outputs: Outputs) -> ImageShape:
        """The shape of such images. Raises EncoderFailed if the blueprint cannot run."""
        name = (model, size, outputs)
        known = self._shapes.get(name)
        if isinstance(known, ImageShape):
            self._shapes.move_to_end(name)
            return known

        def work_out() -> ImageShape:
            cost = self._blueprint(model, None).cost(size, outputs, device=self._device)
            return ImageShape(model, size, outputs, cost)

        return await self._learn(name, work_out)

    async def text_shape(self, model: str) -> TextShape:
        """The shape of the model's texts. Raises EncoderFailed if the blueprint cannot run."""
        known = self._shapes.get(model)
        if isinstance(known, TextShape):
            self._shapes.move_to_end(model)
            return known
        return await self._learn(
            model, lambda: TextShape(model, self._blueprint(model, None).text_cost(device=self._device))
        )

    async def rehearse(self, specs: Iterable[EncoderSpec]) -> None:
        """Plan the shapes that are asked for most, so that not even the first such request waits."""
        for spec in specs:
            tokens, both = Outputs(tokens=TokenKind.HIDDEN), Outputs(tokens=TokenKind.HIDDEN, pooled=True)
            dense = [Outputs(tokens=TokenKind.DENSE, pooled=True)] if spec.dense and spec.has_text else []
            for outputs in (tokens, both, *dense):
                await self.image_shape(spec.id, spec.image_size, outputs)

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

        The room is the budget's beside the other encoders that are loaded. Raises EncoderFailed.
        """
        overhead = self._budget.overhead
        room = self._budget.room + overhead.context + self._budget.held(model)

        def rows() -> list[tuple[EncoderSpec, Row, ImageSize | None]]:
            found = []
            for dtype in dtypes:
                blueprint = self._blueprint(model, dtype)
                spec = blueprint.spec
                ask: dict[str, Any] = {"device": self._device, "overhead": overhead}
                free = room - overhead.context - spec.weights_bytes
                search = partial(largest_size, blueprint, outputs, like=spec.image_size, free=free, **ask)
                largest = {batch: search(batch=batch) for batch in batches}
                planned = plan(blueprint, sizes, batches, outputs, room=room, **ask)
                found += [(spec, row, largest[row.prediction.batch]) for row in planned]
            return found

        return await self._run(rows)

    async def refusal(self, shape: ImageShape) -> ImageDoesNotFit:
        """The error for a shape that does not fit: it names the largest resolution that does."""
        room = self._budget.room

        def largest() -> ImageSize | None:
            """Of the request's proportions; if none fits, of the model's."""
            blueprint = self._blueprint(shape.model, None)
            search = partial(
                largest_size,
                blueprint,
                shape.outputs,
                batch=1,
                device=self._device,
                overhead=self._budget.overhead,
                free=room - self._budget.excess(shape.model, self._budget.predicted(shape, 1)),
                at_most=shape.size,
            )
            return search(like=shape.size) or search(like=blueprint.spec.image_size)

        return ImageDoesNotFit(
            model=shape.model,
            resolution=shape.size,
            predicted=self._budget.need(shape),
            room=room,
            budget=self._budget.total,
            largest=await self._run(largest),
        )

    def close(self) -> None:
        """Take no more; the thread ends with the plans that somebody waits for."""
        self._thread.shutdown(wait=False)

    async def _run(self, function: Callable[[], R]) -> R:
        try:
            planned = asyncio.get_running_loop().run_in_executor(self._thread, function)
        except RuntimeError as error:  # the thread has ended with the engine
            raise ShuttingDown from error
        return await planned

    async def _learn(self, name: Hashable, work_out: Callable[[], S]) -> S:
        """Plan a new shape; whoever asks meanwhile waits for the same plan."""

        async def learn() -> S:
            try:
                shape = await self._run(work_out)
            finally:
                del self._under_way[name]
            self._shapes[name] = shape
            while len(self._shapes) > _SHAPES:
                self._shapes.popitem(last=False)
            return shape

        if name not in self._under_way:
            task = self._under_way[name] = asyncio.create_task(learn())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, also if nobody is left
        shape: S = await asyncio.shield(self._under_way[name])  # the first to ask may leave; the others go on waiting
        return shape

    def _blueprint(self, model: str, dtype: str | None) -> Blueprint:
        """On the planner's thread."""
        if (model, dtype) not in self._blueprints:
            self._blueprints[model, dtype] = self._make(model, dtype)
        return self._blueprints[model, dtype]
