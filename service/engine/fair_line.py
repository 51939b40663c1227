"""A line in which who asks for little does not stand behind who asks for much. Pure.

Each flow (a request) gets an equal share of the work done while it has items in the line, whoever came first: weighted
fair queueing by finish times. So 64 huge images of one request do not stand before the thumbnail of another, and the
huge ones have their turn when the others have had as much.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Share:
    """Of a flow that has items in the line. finish: when its last item is due; waiting: how many there are."""

    finish: float
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Place(Generic[T]):
    item: T
    flow: object
    cost: float


class FairLine(Generic[T]):
    """Items are taken in the order in which their flows' shares come to them. Told apart by identity, as flows are."""

    def __init__(self) -> None:
        self.size = 0
        """Items in the line."""
        self._heap: list[tuple[float, int]] = []  # when due, number
        self._places: dict[int, _Place[T]] = {}  # by number
        self._numbers: dict[int, int] = {}  # by the item's identity
        self._shares: dict[int, _Share] = {}  # by the flow's identity
        self._last = 0
        self._now = 0.0
        """Work that a flow has had that was here throughout."""

    def __iter__(self) -> Iterator[T]:
        """In the order in which they are due. The first costs little, the others a sort."""
        while self._heap and self._heap[0][1] not in self._places:
            heappop(self._heap)
        if self._heap:
            yield self._places[self._heap[0][1]].item
            for _, number in sorted(self._heap)[1:]:
                if number in self._places:
                    yield self._places[number].item

    def put(self, item: T, flow: object, cost: float) -> None:
        """Give it a place. cost: work, in any unit that is the same for all."""
        share = self._shares.setdefault(id(flow), _Share(self._now))
        share.finish += cost
        share.waiting += 1
        self.size += 1
        self._last += 1
        self._places[self._last] = _Place(item, flow, cost)
        self._numbers[id(item)] = self._last
        heappush(self._heap, (share.finish, self._last))

    def take(self, item: T) -> None:
        """It leaves the line to be worked on."""
        flows = len(self._shares)
        self._now += self._remove(item).cost / flows

    def discard(self, item: T) -> bool:
        """It leaves the line, and nobody works on it. False if it was not there."""
        if id(item) not in self._numbers:
            return False
        self._remove(item)
        return True

    def _remove(self, item: T) -> _Place[T]:
        place = self._places.pop(self._numbers.pop(id(item)))
        share = self._shares[id(place.flow)]
        share.waiting -= 1
        self.size -= 1
        if not share.waiting:
            del self._shares[id(place.flow)]
        return place
