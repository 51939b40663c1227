"""How large a batch may be so that it does not hold the device for too long. Knows work and seconds; runs nothing.

A budget of memory alone would let hundreds of images into one forward of a minute on a CPU: nobody's answer would come
before the last one's. The pace is learnt from the forwards that were seen, in floating-point operations a second.
"""

_FORGETS = 0.9
"""What is left of the best pace after another forward that was slower."""


class Pace:
    """longest_s: seconds a forward may last. It learns on the device threads, and is asked on any."""

    def __init__(self, *, longest_s: float) -> None:
        self._longest_s = longest_s
        self._flops_a_second: dict[object, float] = {}

    def ran(self, tower: object, *, flops: int, seconds: float) -> None:
        """A forward of this tower (a model's images, or its texts) has run. Small ones are slow, so the best counts."""
        if seconds > 0:
            best = self._flops_a_second.get(tower, 0.0)
            self._flops_a_second[tower] = max(flops / seconds, best * _FORGETS)

    def ceiling(self, tower: object, *, flops: int) -> int:
        """The most items of `flops` each that last no longer than asked, at least 1; 1 as long as nothing has run."""
        return max(1, int(self._longest_s * self._flops_a_second.get(tower, 0.0) / max(1, flops)))
