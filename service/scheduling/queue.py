"""The waiting items, in lines. Pure: no thread, no clock, no encoder, no policy beyond the order.

1. Shapes that are waited for get equal time on the device: the line is served next whose shape has had least of it
   while it was waited for, and of equals the one with the oldest item. Its items go first in, first out.
2. So a shape that computes briefly does not wait for all that is older of one that computes long, and equal shapes
   still find each other in mixed traffic. It is start-time fair queueing: Goyal, Vin, Cheng, 1996.
3. A line's place is that of when it began to wait, and the queue's clock goes on with the work. So nobody starves, even
   if other shapes come without end: a line waits for its part of the device, as large as that of each other line.

How long a batch may be is for limits.py, lanes.py and patience.py to say.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.memory.shape import ImageShape, Shape

T = TypeVar("T")
_SHAPES = 1000
"""Shapes whose turns are kept."""


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

    began: when it began to wait, on the queue's own clock. is_set: the items came together, run together, and nobody
    joins them.
    """

    shape: Shape
    began: float = 0.0
    is_set: bool = False
    waiting: OrderedDict[int, Waiting[T]] = field(default_factory=OrderedDict)

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


@dataclass
class _Turn:
    """due: when it is a shape's turn again, on the queue's own clock. forward_s: seconds that its last forward took."""

    due: float
    forward_s: float = 0.0


class Queue(Generic[T]):
    """Waiting items by shape. Admission bounds their number (engine/admission.py)."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, Line[T]] = {}
        self._places: dict[int, Hashable] = {}  # ticket -> its line's key
        self._next_ticket = 0
        self._now = 0.0  # the queue's own clock: seconds that a shape has had that was always waited for
        self._turns: dict[Shape, _Turn] = {}
        self.size = 0
        """How many items wait."""

    def next_line(self) -> Line[T] | None:
        """The line whose turn it is; None if nothing waits."""
        lines = self._lines.values()
        if len(lines) < 2:
            return next(iter(lines), None)
        return min(lines, key=self._key)

    def ran(self, shape: Shape, seconds: float) -> None:
        """A batch that was taken of this shape has had the device for so long."""
        self._now += seconds / (1 + len(self._lines))  # each that waits, and one that may come, had this part of them
        turn = self._turns.get(shape)
        if turn is not None:
            turn.due += seconds - turn.forward_s
            turn.forward_s = seconds

    def _key(self, line: Line[T]) -> tuple[float, int]:
        turn = self._turns.get(line.shape)
        return line.began if turn is None else max(line.began, turn.due), next(iter(line.waiting))

    def _charge(self, line: Line[T]) -> None:
        """Ahead of its forward, by the last one: another lane may look for its next line meanwhile."""
        if line.shape not in self._turns and len(self._turns) >= _SHAPES:
            self._turns.clear()  # that all are equal again is the lesser evil
        turn = self._turns.setdefault(line.shape, _Turn(line.began))
        start = max(line.began, turn.due)
        self._now = max(self._now, start)
        turn.due = start + turn.forward_s

    def put(self, shape: Shape, item: T, *, now: float, deadline: float) -> tuple[int, int]:
        """Queue an item behind its kin; gives its ticket, and how many are in its line now."""
        line = self._lines.get(shape)
        if line is None:
            line = self._lines[shape] = Line(shape, self._now)
        ticket = self._next_ticket
        self._next_ticket += 1
        self._places[ticket] = shape
        self.size += 1
        line.waiting[ticket] = Waiting(ticket, item, now, deadline)
        return ticket, len(line.waiting)

    def put_set(self, shape: Shape, items: Sequence[T], *, now: float, deadline: float) -> list[int]:
        """Queue items as a line of their own; gives their tickets."""
        key = object()
        line: Line[T] = Line(shape, self._now, is_set=True)
        tickets = range(self._next_ticket, self._next_ticket + len(items))
        for ticket, item in zip(tickets, items, strict=True):
            self._places[ticket] = key
            line.waiting[ticket] = Waiting(ticket, item, now, deadline)
        if items:
            self._lines[key] = line
        self._next_ticket += len(items)
        self.size += len(items)
        return list(tickets)

    def discard(self, ticket: int) -> Waiting[T] | None:
        """Take an item out unserved; None if it does not wait any more."""
        key = self._places.pop(ticket, None)
        if key is None:
            return None
        self.size -= 1
        line = self._lines[key]
        waiting = line.waiting.pop(ticket)
        if not line.waiting:
            del self._lines[key]
        return waiting

    def clear(self) -> None:
        """Take everything out unserved."""
        self._lines.clear()
        self._places.clear()
        self.size = 0

    def take(self, line: Line[T], *, most: int, now: float) -> Taken[T]:
        """Up to `most` items from the head of the line; items past their deadline do not count."""
        batch: list[Waiting[T]] = []
        expired: list[Waiting[T]] = []
        key: Hashable = None
        while line.waiting and len(batch) < most:
            ticket, waiting = line.waiting.popitem(last=False)
            key = self._places.pop(ticket)
            self.size -= 1
            (expired if waiting.deadline <= now else batch).append(waiting)
        if not line.waiting:
            del self._lines[key]
        if batch:
            self._charge(line)
        return Taken(line.shape, batch, expired, left=len(line.waiting))

    def take_all(self, wanted: Callable[[Line[T]], bool]) -> list[T]:
        """Take whole lines out unserved; gives their items."""
        items = []
        for key, line in [(key, line) for key, line in self._lines.items() if wanted(line)]:
            items += [waiting.item for waiting in line.waiting.values()]
            for ticket in line.waiting:
                del self._places[ticket]
            self.size -= len(line.waiting)
            del self._lines[key]
        return items

    def waiting_images(self, model: str) -> int:
        """Images that wait for this model."""
        return sum(
            len(line.waiting)
            for line in self._lines.values()
            if isinstance(line.shape, ImageShape) and line.shape.model == model
        )

    def oldest_since(self, model: str) -> float | None:
        """When the oldest waiting item of this model arrived."""
        return min((line.oldest.since for line in self._lines.values() if line.shape.model == model), default=None)
