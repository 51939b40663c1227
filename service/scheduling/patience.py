"""Policy: on a CPU a batch waits for images that are being decoded. Pure.

They are sure to come, and decoding takes the cores which the forward would take. So they are waited for until the batch
is large enough to be fast, and no longer than a few forwards take. On a GPU nothing waits: there is no Patience.
"""

from collections import Counter

from service.memory.shape import Shape

_FORWARDS = 4
"""A batch waits no longer than so many forwards like its model's last one take."""


class Patience:
    """The items on their way. Used under the device threads' lock."""

    def __init__(self) -> None:
        self.coming = 0
        """Items on their way."""
        self._coming: Counter[Shape] = Counter()

    def expect(self, shape: Shape) -> None:
        """An item is on its way: `arrived` follows, whether it can be queued or not."""
        self.coming += 1
        self._coming[shape] += 1

    def arrived(self, shape: Shape) -> bool:
        """An item that was expected is not on its way any more. Gives whether it was the last of its shape."""
        self.coming -= 1
        self._coming[shape] -= 1
        if self._coming[shape]:
            return False
        del self._coming[shape]
        return True

    def wait_s(self, shape: Shape, *, waiting: int, enough: int, forward_s: float, since: float, now: float) -> float:
        """Seconds that a batch of the `waiting` items had better wait.

        enough: items from which on it waits for nobody. forward_s: that the last such forward took. since: when the
        oldest of the items arrived.
        """
        if shape not in self._coming or waiting >= enough:
            return 0.0
        return max(0.0, since + _FORWARDS * forward_s - now)
