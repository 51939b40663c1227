"""Learns by how many bytes a model's forwards exceed their predictions. Pure.

A prediction does not see a library's workspace within one operation. Such a workspace is often the same for small and
large forwards, and sometimes grows with them. So an excess is no ratio: up to twice the largest forward measured, it is
taken to be the largest excess seen. Beyond that, it is extrapolated along the line through the smallest and the largest
forward; in proportion, as long as only one size has been measured. Predictions that were too high are not corrected: a
small batch that left memory unused says nothing of a large one.
"""

_FORGETS = 0.99
"""An excess shrinks to this share after a forward of about the same size that did not need it."""


class Correction:
    """The correction of one model."""

    def __init__(self) -> None:
        self._measured: dict[int, tuple[int, float]] = {}
        """Predictions by powers of two: the largest prediction of each, and the excess."""

    def __bool__(self) -> bool:
        # Of a copy: other threads ask while a device thread learns.
        return any(excess >= 1 for _, excess in list(self._measured.values()))

    def learn(self, predicted: int, peak: int) -> bool:
        """A forward that was predicted to take `predicted` bytes took `peak`. Gives whether that changed anything."""
        place = predicted.bit_length()
        largest, before = self._measured.get(place, (predicted, 0.0))
        learnt = max(largest, predicted), max(float(peak - predicted), before * _FORGETS)
        changed = self._measured.get(place) != learnt
        self._measured[place] = learnt
        return changed

    def excess(self, predicted: int) -> int:
        """Bytes to expect beyond a prediction; never falls as the prediction grows."""
        if not self._measured:
            return 0
        known = [self._measured[place] for place in sorted(self._measured)]
        most = max((excess for size, excess in known if size <= predicted), default=known[0][1])
        (small, at_small), (large, at_large) = known[0], known[-1]
        if predicted <= 2 * large:  # near enough to find out
            return int(most)
        slope = at_large / large if small == large else max(0.0, at_large - at_small) / (large - small)
        return int(max(most, at_large + slope * (predicted - large)))
