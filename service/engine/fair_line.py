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
class Flow:
    """Items that share one share. finish: the work after which its last item is due; waiting: its items in the line."""

    finish: float = 0.0
    waiting: int = 0


@dataclass(slots=True)
class _Place(Generic[T]):
    item: T
    flow: Flow
    cost: float


class FairLine(Generic[T]):
    """Items are taken by the work that their flow has asked for. Items are told apart by identity."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._places: dict[int, _Place[T]] = {}  # by number
        self._numbers: dict[int, int] = {}  # by the item's identity
        self._number = 0
        self._flows = 0  # with items in the line
        self._done = 0.0
        """Work that a flow has had that was here throughout."""

    def __len__(self) -> int:
        return len(self._places)

    def put(self, item: T, flow: Flow, cost: float) -> None:
        """Give it a place."""
        flow.finish = max(self._done, flow.finish) + cost
        flow.waiting += 1
        self._flows += flow.waiting == 1
        self._number += 1
        self._places[self._number] = _Place(item, flow, cost)
        self._numbers[id(item)] = self._number
        heappush(self._heap, (flow.finish, self._number))

    def __iter__(self) -> Iterator[T]:
        """In the order in which they are due. The first costs little, the others a sort."""
        while self._heap and self._heap[0][1] not in self._places:
            heappop(self._heap)
        if self._heap:
            yield self._places[self._heap[0][1]].item
            for _, number in sorted(self._heap)[1:]:
                if number in self._places:
                    yield self._places[number].item

    def take(self, item: T) -> None:
        """It leaves the line to be worked on."""
        flows = self._flows
        self._done += self._remove(item).cost / flows

    def discard(self, item: T) -> bool:
        """It leaves the line, and nobody works on it. False if it was not there."""
        if id(item) not in self._numbers:
            return False
        self._remove(item)
        return True

    def _remove(self, item: T) -> _Place[T]:
        place = self._places.pop(self._numbers.pop(id(item)))
        place.flow.waiting -= 1
        self._flows -= place.flow.waiting == 0
        return place
