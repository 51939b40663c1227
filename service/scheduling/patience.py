"""Policy: on a CPU a batch waits for images that are being decoded. Pure.

They are sure to come, and decoding takes the cores which the forward would take. So they are waited for until the batch
is large enough to be fast, and no longer than a few forwards take. On a GPU nothing waits: there is no Patience.
"""

from collections import Counter

from service.memory.shape import Shape

_FORWARDS = 4
"""A batch waits no longer than so many forwards like its model's last one take."""


class Patience:
    """The items on their way, and how long each model's last forward took. Used under the device threads' lock.

    enough: items from which on a batch waits for nobody.
    """

    def __init__(self, *, enough: int) -> None:
        self._enough = enough
        self._coming: Counter[Shape] = Counter()
        self._took: dict[str, float] = {}

    @property
    def coming(self) -> int:
        """Items on their way."""
        return self._coming.total()

    def expect(self, shape: Shape) -> None:
        """An item is on its way: `arrived` follows, whether it can be queued or not."""
        self._coming[shape] += 1

    def arrived(self, shape: Shape) -> None:
        """An item that was expected is not on its way any more."""
        self._coming[shape] -= 1
        if not self._coming[shape]:
            del self._coming[shape]

    def ran(self, model: str, seconds: float) -> None:
        """A forward of the model has run."""
        self._took[model] = seconds

    def wait_s(self, shape: Shape, *, waiting: int, ceiling: int, since: float, now: float) -> float:
        """Seconds that a batch of the `waiting` items had better wait; since: when the oldest of them arrived."""
        if shape not in self._coming or waiting >= min(self._enough, ceiling):
            return 0.0
        return max(0.0, since + _FORWARDS * self._took.get(shape.model, 0.0) - now)
