"""Measures what forwards take and holds it against what was predicted. Runs on the device threads."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from encoders.memory.device import Memory, Reading
from service.memory.budget import Budget
from service.memory.shape import Shape
from service.telemetry.metrics import Metrics

_FIRST = 2
"""Where measuring slows a forward, so many forwards of each shape are measured: more would find the same."""
_SHAPES = 10_000
"""Shapes whose forwards are counted."""


class Measurement:
    """Readings of one device's memory. They correct the budget and are counted in the metrics."""

    def __init__(self, memory: Memory, budget: Budget, metrics: Metrics) -> None:
        self._memory = memory
        self._budget = budget
        self._metrics = metrics
        self._forwards: Counter[Shape] = Counter()
        self.settled: set[Shape] = set()
        """Shapes whose forwards need not be measured any more."""

    @contextmanager
    def forward(self, shape: Shape, batch: int) -> Iterator[Reading]:
        """Measures the block in which a forward is begun; the reading has a value at its end.

        A forward takes all its memory in the block (Encoder.begin). So the reading is of one batch, though another may
        run on the device: the memory of that one was given back.
        """
        is_due = self._memory.reads_freely or self._forwards[shape] < _FIRST
        with self._memory.reading() if is_due else nullcontext(Reading()) as reading:
            yield reading
        predicted = self.predicted(shape, batch)
        if reading.peak is not None and predicted:
            ratio = self._budget.measured(shape, batch, reading.peak)
            self._metrics.measured(shape.model, predicted=predicted, peak=reading.peak, ratio=ratio)
        has_cap = shape in self._budget.caps
        if has_cap:
            self._budget.ran(shape, batch)
        if not self._memory.reads_freely:
            self._count(shape, has_cap=has_cap)

    def predicted(self, shape: Shape, batch: int) -> int:
        """Bytes that a forward is expected to take."""
        return self._budget.predicted(shape, batch)

    def ran_out(self, shape: Shape, batch: int) -> None:
        """A forward found no room. From now on this shape's forwards are watched until its ceiling is forgotten."""
        self._budget.ran_out(shape, batch)
        self.settled.discard(shape)
        self._metrics.out_of_memory(shape.model)
        self._memory.release()

    def _count(self, shape: Shape, *, has_cap: bool) -> None:
        if len(self._forwards) > _SHAPES:
            self.settled.clear()
            self._forwards.clear()
        self._forwards[shape] += 1
        if self._forwards[shape] >= _FIRST and not has_cap:
            self.settled.add(shape)
            if shape in self._budget.caps:  # it ran out meanwhile, in another lane
                self.settled.discard(shape)
