"""Values by key, bounded in bytes; the one not asked for longest goes first. Pure."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lru(Generic[K, V]):
    """limit: bytes; 0 keeps nothing."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        """Bytes that it holds, by what `put` was told."""
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """None if it is not kept."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        """Keep it, if it is not larger than everything may be. What is kept under the key already stays."""
        if nbytes > self.limit or key in self._kept:
            return
        self._kept[key] = value, nbytes
        self.nbytes += nbytes
        while self.nbytes > self.limit:
            _, (_, freed) = self._kept.popitem(last=False)
            self.nbytes -= freed
