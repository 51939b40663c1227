"""What forwards will take, worked out on a thread of its own from the encoders' blueprints. Loads no weights.

A shape that nobody has asked for before takes some tenths of a second to plan; only the request that brought it waits.
Once known it is the budget's, and planning is a look-up.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from encoders.contract.cost import Cost
from encoders.contract.encoder import Encoder
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.memory.plan import largest_size, plan
from service.errors import ImageDoesNotFit
from service.memory.budget import Budget
from service.scheduling.queue import BatchKey, ImageKey
from service.spec_json import vram_card

R = TypeVar("R")

Blueprint = Callable[[str, str | None], Encoder]
"""Encoder id and dtype (None: the one it is served in) -> its blueprint."""


class Planner:
    """Lives on the event loop; the work is done on one thread beside it."""

    def __init__(self, blueprint: Blueprint, *, device: str, budget: Budget) -> None:
        self.device = device
        self._make = blueprint
        self._budget = budget
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="planner")
        self._blueprints: dict[tuple[str, str | None], Encoder] = {}
        self._under_way: dict[BatchKey, asyncio.Task[Cost]] = {}

    async def run(self, function: Callable[[], R]) -> R:
        """Do planning work beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def blueprint(self, model: str, dtype: str | None = None) -> Encoder:
        """The model's blueprint. Raises EncoderIdError or WeightsError."""
        return await self.run(lambda: self._blueprint(model, dtype))

    async def cost(self, key: BatchKey) -> Cost:
        """What forwards of this key take; the budget learns it. Raises EncoderFailed if the blueprint cannot run."""
        known = self._budget.cost(key)
        if known is not None:
            return known
        if key not in self._under_way:
            self._under_way[key] = asyncio.create_task(self._learn(key))
        return await asyncio.shield(self._under_way[key])  # who came first may leave; the others go on waiting

    async def rehearse(self, specs: Mapping[str, EncoderSpec]) -> None:
        """Plan what is asked for most, so that not even the first such request waits for it."""
        for model, spec in specs.items():
            tokens, both = Outputs(tokens=TokenKind.HIDDEN), Outputs(tokens=TokenKind.HIDDEN, pooled=True)
            dense = [Outputs(tokens=TokenKind.DENSE, pooled=True)] if spec.dense and spec.has_text else []
            for outputs in (tokens, both, *dense):
                await self.cost(ImageKey(model, spec.image_size, outputs))

    async def table(
        self,
        model: str,
        sizes: Sequence[ImageSize],
        batches: Sequence[int],
        outputs: Outputs,
        *,
        dtypes: Sequence[str | None],
    ) -> list[dict[str, object]]:
        """A row for each dtype, size and batch, with what fits beside the other encoders that are loaded."""
        room = self._budget.room + self._budget.overhead.context + self._budget.held(model)

        def rows() -> list[dict[str, object]]:
            found = []
            for dtype in dtypes:
                blueprint = self._blueprint(model, dtype)
                spec = blueprint.spec
                ask: dict[str, Any] = {"device": self.device, "overhead": self._budget.overhead}
                free = room - self._budget.overhead.context - spec.weights_bytes
                search = partial(largest_size, blueprint, outputs, like=spec.image_size, free=free, **ask)
                largest = {batch: search(batch=batch) for batch in batches}
                for row in plan(blueprint, sizes, batches, outputs, room=room, **ask):
                    found.append(vram_card(row, spec, max_resolution=largest[row.prediction.batch]))
            return found

        return await self.run(rows)

    async def refusal(self, key: ImageKey) -> ImageDoesNotFit:
        """Of a shape that does not fit: names the largest resolution that does."""
        room = self._budget.room

        def largest() -> ImageSize | None:
            """Of the request's proportions, or if there is none, of the model's."""
            blueprint = self._blueprint(key.model, None)
            search = partial(
                largest_size,
                blueprint,
                key.outputs,
                batch=1,
                device=self.device,
                overhead=self._budget.overhead,
                free=room - self._budget.excess(key.model, self._budget.predicted(key, 1)),
                at_most=key.size,
            )
            return search(like=key.size) or search(like=blueprint.spec.image_size)

        return ImageDoesNotFit(
            model=key.model,
            resolution=key.size,
            predicted=self._budget.need(key),
            room=room,
            budget=self._budget.total,
            largest=await self.run(largest),
        )

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _learn(self, key: BatchKey) -> Cost:
        try:
            cost = await self.run(lambda: self._work_out(key))
            self._budget.learn(key, cost)
            return cost
        finally:
            del self._under_way[key]

    def _work_out(self, key: BatchKey) -> Cost:
        blueprint = self._blueprint(key.model, None)
        if isinstance(key, ImageKey):
            return blueprint.cost(key.size, key.outputs, device=self.device)
        return blueprint.text_cost(device=self.device)

    def _blueprint(self, model: str, dtype: str | None) -> Encoder:
        if (model, dtype) not in self._blueprints:
            self._blueprints[model, dtype] = self._make(model, dtype)
        return self._blueprints[model, dtype]
