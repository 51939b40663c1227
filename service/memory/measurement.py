"""Measures what forwards take and holds it against what was predicted. Runs on the device threads."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext

from encoders.memory.device import Memory, Reading
from service.memory.budget import Budget
from service.memory.shape import Shape
from service.telemetry.metrics import Metrics

_FIRST = 2
"""Where measuring slows a forward, so many forwards of each shape are measured: more would find the same."""
_SHAPES = 10_000


class Measurement:
    """Readings of one device's memory. They correct the budget and are counted in the metrics."""

    def __init__(self, memory: Memory, budget: Budget, metrics: Metrics) -> None:
        self._memory = memory
        self._budget = budget
        self._metrics = metrics
        self._forwards: Counter[Shape] = Counter()

    def reading(self, shape: Shape) -> AbstractContextManager[Reading]:
        """A reading of the block in which a forward is begun; its peak is None where this forward is not measured.

        A forward takes all its memory while it is begun (Encoder.begin). So the reading is of one batch, though another
        may run on the device: the memory of that one was given back before.
        """
        if self._memory.reads_freely:
            return self._memory.reading()
        if len(self._forwards) > _SHAPES:
            self._forwards.clear()
        self._forwards[shape] += 1
        return self._memory.reading() if self._forwards[shape] <= _FIRST else nullcontext(Reading())

    def ran(self, shape: Shape, batch: int, peak: int | None) -> None:
        """A forward found room and took `peak` bytes, if that was measured."""
        self._budget.ran(shape, batch)
        if peak is None:
            return
        predicted = self._budget.predicted(shape, batch)
        ratio = self._budget.measured(shape, batch, peak)
        if ratio is not None:
            self._metrics.measured(shape.model, predicted=predicted, peak=peak, ratio=ratio)

    def ran_out(self, shape: Shape, batch: int) -> None:
        """A forward found no room."""
        self._budget.ran_out(shape, batch)
        self._metrics.out_of_memory(shape.model)
        self._memory.release()
