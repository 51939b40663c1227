"""Forwards under measurement: what each took, held against what was predicted. Runs on the device thread."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from encoders.memory import Memory
from encoders.types import Encoder
from service.batching import BatchKey
from service.budget import Budget
from service.forward import Outcome, forward
from service.metrics import Metrics

_FIRST = 2
"""Where measuring slows a forward, so many of each shape are measured: it finds the same each time."""
_SHAPES = 10_000


class Meter:
    """Runs batches, and tells the budget and the metrics what they took."""

    def __init__(self, memory: Memory, budget: Budget, metrics: Metrics) -> None:
        self._memory = memory
        self._budget = budget
        self._metrics = metrics
        self._forwards: Counter[BatchKey] = Counter()

    def run(self, encoder: Encoder, key: BatchKey, payloads: Sequence[Any]) -> list[Outcome]:
        """As forward.forward."""
        batch = len(payloads)
        if not self._is_due(key):
            return self._forward(encoder, key, payloads)[0]
        with self._memory.reading() as reading:
            outcomes, went_well = self._forward(encoder, key, payloads)
        if went_well and reading.peak is not None:
            predicted = self._budget.predicted(key, batch)
            ratio = self._budget.measured(key, batch, reading.peak)
            if ratio is not None:
                self._metrics.measured(key.model, predicted=predicted, peak=reading.peak, ratio=ratio)
        return outcomes

    def _forward(self, encoder: Encoder, key: BatchKey, payloads: Sequence[Any]) -> tuple[list[Outcome], bool]:
        """The outcomes, and whether there was room for all of it at once."""
        refused: list[int] = []

        def on_out_of_memory(batch: int) -> None:
            refused.append(batch)
            self._budget.ran_out(key, batch)
            self._metrics.out_of_memory(key.model)
            self._memory.release()

        outcomes = forward(encoder, key, payloads, on_out_of_memory=on_out_of_memory)
        if not refused:
            self._budget.ran(key, len(payloads))
        return outcomes, not refused

    def _is_due(self, key: BatchKey) -> bool:
        if self._memory.reads_freely:
            return True
        if len(self._forwards) > _SHAPES:
            self._forwards.clear()
        self._forwards[key] += 1
        return self._forwards[key] <= _FIRST
