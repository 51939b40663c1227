"""How large a batch may be: the budget of memory, the time a forward may last, and the operator's word."""

from service.memory.budget import Budget
from service.memory.shape import Shape
from service.scheduling.throughput import Throughput


class BatchLimits:
    """Stands beside the queue; asked on any thread. most: items in one forward by the operator's word, None for any."""

    def __init__(self, budget: Budget, throughput: Throughput, *, most: int | None = None) -> None:
        self._budget = budget
        self._throughput = throughput
        self._most = most

    def ceiling(self, shape: Shape) -> int:
        """The most items that one forward of this shape may take, at least 1."""
        ceiling = min(self._budget.ceiling(shape), self._throughput.ceiling(shape))
        return ceiling if self._most is None else min(ceiling, self._most)

    def runs_alone(self, shape: Shape) -> bool:
        """Whether a forward of this shape may have nothing beside it."""
        return self._budget.runs_alone(shape)

    def is_full(self, shape: Shape, items: int) -> bool:
        """Whether the budget of memory allows no larger batch."""
        return items >= self._budget.ceiling(shape)

    def ran(self, shape: Shape, items: int, seconds: float) -> None:
        """A forward has run: its speed counts."""
        self._throughput.ran(shape, items, seconds)
