"""The waiting items, in lines. Pure: no thread, no clock, no encoder, no policy beyond the order.

1. The line with the oldest item is served next. Its items go first in, first out.
2. So an item with n older ones ahead of it is in one of the next n + 1 batches, whatever arrives later: a rare shape
   cannot starve, and equal shapes still find each other in mixed traffic.

How long a batch may be is for limits.py, lanes.py and patience.py to say.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.memory.shape import ImageShape, Shape

T = TypeVar("T")


@dataclass(frozen=True)
class Waiting(Generic[T]):
    """An item in the queue. Tickets count arrivals; times are of the caller's clock, in seconds."""

    ticket: int
    item: T
    since: float
    deadline: float


@dataclass
class Line(Generic[T]):
    """The waiting items of one shape, the oldest first.

    is_set: the items came together, run together, and nobody joins them.
    """

    shape: Shape
    is_set: bool = False
    waiting: OrderedDict[int, Waiting[T]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def oldest(self) -> Waiting[T]:
        """The item that is served next."""
        return next(iter(self.waiting.values()))


@dataclass(frozen=True)
class Taken(Generic[T]):
    """Items of one shape that left the queue together.

    batch: to be run; expired: past their deadline. left: items of the line that wait on.
    """

    shape: Shape
    batch: list[Waiting[T]] = field(default_factory=list)
    expired: list[Waiting[T]] = field(default_factory=list)
    left: int = 0


class Queue(Generic[T]):
    """Waiting items by shape. Admission bounds their number (engine/admission.py)."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, Line[T]] = {}
        self._places: dict[int, Hashable] = {}  # ticket -> its line's key
        self._next_ticket = 0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def next_line(self) -> Line[T] | None:
        """The line with the oldest item; None if nothing waits."""
        lines = self._lines.values()
        if len(lines) < 2:
            return next(iter(lines), None)
        return min(lines, key=_age)

    def put(self, shape: Shape, item: T, *, now: float, deadline: float) -> int:
        """Queue an item behind its kin; gives its ticket."""
        if shape not in self._lines:
            self._lines[shape] = Line(shape)
        return self._join(shape, item, now, deadline)

    def put_set(self, shape: Shape, items: Sequence[T], *, now: float, deadline: float) -> list[int]:
        """Queue items as a line of their own; gives their tickets."""
        if not items:
            return []  # no line is empty
        key = object()
        self._lines[key] = Line(shape, is_set=True)
        return [self._join(key, item, now, deadline) for item in items]

    def discard(self, ticket: int) -> bool:
        """Take an item out unserved; False if it does not wait any more."""
        if ticket not in self._places:
            return False
        self._take(ticket)
        return True

    def clear(self) -> None:
        """Take everything out unserved."""
        self._lines.clear()
        self._places.clear()

    def take(self, line: Line[T], *, most: int, now: float) -> Taken[T]:
        """Up to `most` items from the head of the line; items past their deadline do not count."""
        batch: list[Waiting[T]] = []
        expired: list[Waiting[T]] = []
        while line.waiting and len(batch) < most:
            waiting = self._take(line.oldest.ticket)
            (expired if waiting.deadline <= now else batch).append(waiting)
        return Taken(line.shape, batch, expired, left=len(line))

    def waiting_images(self, model: str) -> int:
        """Images that wait for this model."""
        return sum(
            len(line)
            for line in self._lines.values()
            if isinstance(line.shape, ImageShape) and line.shape.model == model
        )

    def oldest_since(self, model: str) -> float | None:
        """When the oldest waiting item of this model arrived."""
        return min((line.oldest.since for line in self._lines.values() if line.shape.model == model), default=None)

    def _join(self, key: Hashable, item: T, now: float, deadline: float) -> int:
        ticket = self._next_ticket
        self._next_ticket += 1
        self._places[ticket] = key
        self._lines[key].waiting[ticket] = Waiting(ticket, item, now, deadline)
        return ticket

    def _take(self, ticket: int) -> Waiting[T]:
        key = self._places.pop(ticket)
        line = self._lines[key]
        waiting = line.waiting.pop(ticket)
        if not line.waiting:
            del self._lines[key]
        return waiting


def _age(line: Line[T]) -> int:
    return line.oldest.ticket
