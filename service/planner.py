"""What forwards will take, worked out on a thread of its own from the encoders' blueprints. Loads no weights.

A shape that nobody has asked for before takes some tenths of a second to plan; only the request that brought it waits.
Once known it is the budget's, and planning is a look-up.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from encoders.cost import Cost
from encoders.types import Encoder
from service.batching import BatchKey, ImageKey
from service.budget import Budget

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
