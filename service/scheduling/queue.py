"""Which waiting items run next, as one batch. Pure: no thread, no clock of its own, no encoder.

The policy, in three rules:
1. Work-conserving: asked for a batch while anything waits, it gives one. It never waits for company that may not come.
   Images that are being decoded will come, and where that takes the cores which the forward would take (a CPU) they are
   waited for: until a batch is large enough to be fast, and no longer than a few forwards take.
2. The oldest waiting item decides the key; all others of that key join, oldest first, up to the key's ceiling.
3. So an item with n older ones ahead of it is in one of the next n + 1 batches, whatever arrives later: a rare shape
   cannot starve, and equal shapes still find each other in mixed traffic.

Where several can take a batch at once, a line too short to be fast in any case is divided among them.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Generic, TypeAlias, TypeVar

from encoders.contract.values import ImageSize, Outputs

T = TypeVar("T")


@dataclass(frozen=True)
class ImageKey:
    """Images of equal keys can share a forward."""

    model: str
    size: ImageSize
    outputs: Outputs

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """A request's key is looked up a dozen times on its way."""
        return hash((self.model, self.size, self.outputs))


image_key = lru_cache(maxsize=1024)(ImageKey)
"""An ImageKey, the same one for the same values: what is one object is not compared field by field."""


@dataclass(frozen=True)
class TextKey:
    """Texts of one model can share a forward."""

    model: str


BatchKey: TypeAlias = ImageKey | TextKey

ENOUGH = 32
"""Images, in all batches side by side, from which on larger ones are hardly faster on a CPU."""

Ceiling: TypeAlias = Callable[[BatchKey], int]
"""The most items of a key that one forward may take, at least 1: where memory and time have their say."""


@dataclass(frozen=True)
class Waiting(Generic[T]):
    """An item in the queue. Tickets count arrivals; times are of the queue's caller's clock, seconds."""

    ticket: int
    key: BatchKey
    item: T
    since: float
    deadline: float


@dataclass(frozen=True)
class Formed(Generic[T]):
    """What form_batch took out: a batch of one key, and of that key who came too late, which may be all.

    left: how many of the batch's key were left waiting.
    """

    batch: list[Waiting[T]] = field(default_factory=list)
    expired: list[Waiting[T]] = field(default_factory=list)
    left: int = 0


class Queue(Generic[T]):
    """Waiting items by key, each line in order of arrival. Its bound is the door's (door.py)."""

    def __init__(
        self, *, ceiling: Ceiling, patience: Callable[[BatchKey], float] = lambda key: 0.0, takers: int = 1
    ) -> None:
        """patience: for how many seconds an item may wait for others of its key that are on their way.

        takers: how many batches there may be side by side.
        """
        self._ceiling = ceiling
        self._patience = patience
        self._enough = ENOUGH // takers
        self._coming: Counter[BatchKey] = Counter()
        self._lines: dict[BatchKey, OrderedDict[int, Waiting[T]]] = {}
        self._keys: dict[int, BatchKey] = {}
        self._next_ticket = 0

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def coming(self) -> int:
        """How many items are on their way."""
        return self._coming.total()

    def expect(self, key: BatchKey) -> None:
        """An item of this key is on its way: `arrived` follows, whether it can be put or not."""
        self._coming[key] += 1

    def arrived(self, key: BatchKey) -> None:
        """One that was expected is not on its way any more."""
        self._coming[key] -= 1
        if not self._coming[key]:
            del self._coming[key]

    def ripe_in(self, now: float) -> float | None:
        """For how many seconds the next batch had better wait for what is on its way; None if nothing waits."""
        if not self._keys:
            return None
        key = self.next_key
        line = self._lines[key]
        if not self._coming[key] or len(line) >= min(self._enough, self._ceiling(key)):
            return 0.0
        oldest = next(iter(line.values()))
        return max(0.0, oldest.since + self._patience(key) - now)

    def put(self, key: BatchKey, item: T, *, now: float, deadline: float) -> int:
        """Queue the item; gives its ticket."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._keys[ticket] = key
        self._lines.setdefault(key, OrderedDict())[ticket] = Waiting(ticket, key, item, now, deadline)
        return ticket

    def discard(self, ticket: int) -> bool:
        """Take an item out unserved; False if it is not waiting any more."""
        if ticket not in self._keys:
            return False
        self._take(ticket)
        return True

    def clear(self) -> list[Waiting[T]]:
        """Take everything out, oldest first."""
        return [self._take(ticket) for ticket in sorted(self._keys)]

    def form_batch(self, now: float, *, among: int = 1) -> Formed[T]:
        """The next batch, oldest item first, and the items whose deadline was found to have passed.

        among: how many can take a batch now. Little is divided among them; of much each takes enough, for where there
        is much there will be more.
        """
        batch: list[Waiting[T]] = []
        expired: list[Waiting[T]] = []
        if not self._keys:
            return Formed()
        key = self.next_key
        waiting_here = len(self._lines[key])
        share = -(-waiting_here // among)
        most = max(1, min(self._ceiling(key), share if waiting_here < self._enough else max(share, self._enough)))
        while key in self._lines and len(batch) < most:
            waiting = self._take(next(iter(self._lines[key])))
            (expired if waiting.deadline <= now else batch).append(waiting)
        return Formed(batch, expired, left=len(self._lines.get(key, ())))

    def has_batch_of(self, size: int) -> bool:
        """Whether the next batch is of `size` images already, or of all that its ceiling allows. Texts never are.

        Images past their deadline are counted: they are not known yet.
        """
        if not self._keys:
            return False
        key = self.next_key
        return isinstance(key, ImageKey) and len(self._lines[key]) >= min(size, max(1, self._ceiling(key)))

    def waiting_images(self, model: str) -> int:
        """How many images wait for this model."""
        return sum(len(line) for key, line in self._lines.items() if isinstance(key, ImageKey) and key.model == model)

    def oldest_since(self, model: str) -> float | None:
        """When the oldest waiting item of this model arrived."""
        return min(
            (next(iter(line.values())).since for key, line in self._lines.items() if key.model == model), default=None
        )

    @property
    def next_key(self) -> BatchKey:
        """The oldest item's, which is the next batch's; for a queue in which something waits."""
        return min(self._lines, key=lambda key: next(iter(self._lines[key])))

    def _take(self, ticket: int) -> Waiting[T]:
        key = self._keys.pop(ticket)
        line = self._lines[key]
        waiting = line.pop(ticket)
        if not line:
            del self._lines[key]
        return waiting
