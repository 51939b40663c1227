"""By how much a model's forwards take more than predicted. Pure: learns from measurements, in bytes.

What a prediction cannot see is a library's workspace within one operation: often the same for small forwards and large,
sometimes growing with them. So an excess is not taken for a ratio: it is taken to be the same up to twice the largest
forward measured, and from there on extrapolated along the line through the smallest and the largest, or in proportion
as long as there is but one size of them. What was predicted too high is not corrected: what a small batch left unused
says nothing of a large one.
"""

_FORGETS = 0.99
"""What is left of an excess after another forward of about that size that did not need it."""


class Correction:
    """Of one model."""

    def __init__(self) -> None:
        self._measured: dict[int, tuple[int, float]] = {}
        """Predictions by powers of two -> the largest prediction in it, and the excess."""

    def __bool__(self) -> bool:
        # Of a copy: other threads ask while the device's learns.
        return any(excess >= 1 for _, excess in list(self._measured.values()))

    def learn(self, predicted: int, peak: int) -> None:
        """A forward of so many predicted bytes took `peak`."""
        place = predicted.bit_length()
        largest, before = self._measured.get(place, (predicted, 0.0))
        excess = max(float(peak - predicted), before * _FORGETS)
        self._measured[place] = max(largest, predicted), excess

    def excess(self, predicted: int) -> int:
        """Bytes that a forward must be expected to take beyond its prediction; never falls as the prediction grows."""
        if not self._measured:
            return 0
        known = [self._measured[place] for place in sorted(self._measured)]
        most = max((excess for size, excess in known if size <= predicted), default=known[0][1])
        (small, at_small), (large, at_large) = known[0], known[-1]
        if predicted <= 2 * large:  # near enough to find out
            return int(most)
        slope = at_large / large if small == large else max(0.0, at_large - at_small) / (large - small)
        return int(max(most, at_large + slope * (predicted - large)))
