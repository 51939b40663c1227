"""Learns how fast each tower computes, and so how many items a forward may take in the time it should last.

Memory alone would let hundreds of images into one forward of a minute on a CPU: nobody's answer would come before the
last one's. Speed is counted in floating-point operations a second.
"""

from service.memory.shape import Shape

_FORGETS = 0.9
"""The best speed shrinks to this share after a slower forward."""


class Throughput:
    """longest_s: seconds that a forward may last. It learns on the device threads, and is asked on any."""

    def __init__(self, *, longest_s: float) -> None:
        self._longest_s = longest_s
        self._flops_a_second: dict[tuple[type, str], float] = {}

    def ran(self, shape: Shape, items: int, seconds: float) -> None:
        """A forward has run. Small forwards are slow, so the best speed counts."""
        if seconds > 0:
            tower = (type(shape), shape.model)
            best = self._flops_a_second.get(tower, 0.0)
            self._flops_a_second[tower] = max(shape.cost.flops * items / seconds, best * _FORGETS)

    def ceiling(self, shape: Shape) -> int:
        """The most items that last no longer than allowed, at least 1; 1 as long as no forward has run."""
        speed = self._flops_a_second.get((type(shape), shape.model))
        if speed is None:
            return 1
        allowed = self._longest_s * speed / max(1, shape.cost.flops)
        return max(1, int(min(allowed, _ANY)))


_ANY = 2**31
"""More items than any queue holds: `longest_s` may be infinite."""
