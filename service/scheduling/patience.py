"""Policy: on a CPU a batch waits for images that are being decoded. Pure.

They are sure to come, and decoding takes the cores which the forward would take. So a batch waits for those that were
on their way when the oldest of its images came: not for later ones, of which there may always be another. It waits
until it is large enough to be fast, and no longer than a few forwards take. On a GPU nothing waits: there is no
Patience.
"""

from collections import Counter
from typing import NamedTuple

from service.memory.shape import Shape

_FORWARDS = 4
"""A batch waits no longer than so many forwards like its model's last one take."""


class _Held(NamedTuple):
    """A batch that waits. enough: items from which on it waits for nobody. since: when its oldest came."""

    enough: int
    since: float


class Patience:
    """The items on their way, and the batch that waits for them. Used under the device threads' lock."""

    def __init__(self) -> None:
        self.coming = 0
        """Items on their way."""
        self._coming: dict[Shape, Counter[float]] = {}  # by when they were expected, the earliest first
        self._held: _Held | None = None

    def expect(self, shape: Shape, *, now: float) -> None:
        """An item is on its way: `arrived` follows, whether it can be queued or not."""
        self.coming += 1
        self._coming.setdefault(shape, Counter())[now] += 1

    def arrived(self, shape: Shape, *, expected: float, in_line: int) -> bool:
        """An item is not on its way any more; gives whether the batch that waits has to be looked at again.

        expected: when it was. in_line: items of this shape that are queued, with this one; 0 if it was not.
        """
        self.coming -= 1
        coming = self._coming[shape]
        coming[expected] -= 1
        if not coming[expected]:
            del coming[expected]
            if not coming:
                del self._coming[shape]
        held = self._held
        if held is None or (in_line < held.enough and self._is_waited_for(shape, held.since)):
            return False
        self._held = None  # who looks at it again says whether it waits again
        return True

    def wait_s(self, shape: Shape, *, waiting: int, enough: int, forward_s: float, since: float, now: float) -> float:
        """Seconds that a batch of the `waiting` items had better wait.

        enough: items from which on it waits for nobody. forward_s: that the last such forward took. since: when the
        oldest of the items arrived.
        """
        wait_s = 0.0
        if waiting < enough and self._is_waited_for(shape, since):
            wait_s = max(0.0, since + _FORWARDS * forward_s - now)
        self._held = _Held(enough, since) if wait_s else None
        return wait_s

    def _is_waited_for(self, shape: Shape, since: float) -> bool:
        """Whether any item of this shape was on its way then."""
        coming = self._coming.get(shape)
        return coming is not None and next(iter(coming)) <= since
