"""Forwards under measurement: what each took, held against what was predicted. Runs on the device threads."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from encoders.contract.encoder import Encoder
from encoders.memory.device import Memory, Reading
from service.memory.budget import Budget
from service.scheduling.batch import Begun, begin
from service.scheduling.queue import BatchKey
from service.telemetry.metrics import Metrics

_FIRST = 2
"""Where measuring slows a forward, so many of each shape are measured: it finds the same each time."""
_SHAPES = 10_000


class Meter:
    """Begins batches, and tells the budget and the metrics what they took."""

    def __init__(self, memory: Memory, budget: Budget, metrics: Metrics) -> None:
        self._memory = memory
        self._budget = budget
        self._metrics = metrics
        self._forwards: Counter[BatchKey] = Counter()

    def begin(self, encoder: Encoder, key: BatchKey, payloads: Sequence[Any]) -> Begun:
        """As forward.begin. A reading spans no more than that, as a forward takes all its memory there (Encoder.begin).

        So it is of one batch, though another may run on the device: what that one took was given back before.
        """
        batch = len(payloads)
        refused: list[int] = []

        def on_out_of_memory(size: int) -> None:
            refused.append(size)
            self._budget.ran_out(key, size)
            self._metrics.out_of_memory(key.model)
            self._memory.release()

        with self._memory.reading() if self._is_due(key) else nullcontext(Reading()) as reading:
            begun = begin(encoder, key, payloads, on_out_of_memory=on_out_of_memory)
        if not refused:
            self._found_room(key, batch, reading.peak)
        return begun

    def _found_room(self, key: BatchKey, batch: int, peak: int | None) -> None:
        self._budget.ran(key, batch)
        if peak is None:
            return
        predicted = self._budget.predicted(key, batch)
        ratio = self._budget.measured(key, batch, peak)
        if ratio is not None:
            self._metrics.measured(key.model, predicted=predicted, peak=peak, ratio=ratio)

    def _is_due(self, key: BatchKey) -> bool:
        if self._memory.reads_freely:
            return True
        if len(self._forwards) > _SHAPES:
            self._forwards.clear()
        self._forwards[key] += 1
        return self._forwards[key] <= _FIRST
