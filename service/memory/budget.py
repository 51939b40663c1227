"""Divides the bytes of the device among weights and forwards, and says how large a batch may be. Runs nothing.

On a card the bytes of forwards never add up: the weights and one forward must fit. One forward runs at a time. The next
may be begun behind it, on the same stream: it is given the same memory in turn, outputs included. Pixels on their way
come on top (Overhead.uploads), and a ceiling leaves room for them. A single item is admitted without that room: if
memory is that tight, the allocator waits until the pixels before have been read, and takes theirs.

Where forwards run side by side (lanes), the room is divided among them. A single item may still take all of it, alone.

Measurements correct predictions (correction.py). A batch that ran out of memory all the same halves its shape's
ceiling; the ceiling grows again after some full batches that went well.

The event loop, the device threads and the threads that decode use it.
"""

import threading
from bisect import bisect_right
from dataclasses import dataclass

from encoders.memory.prediction import Overhead
from service.memory.correction import Correction
from service.memory.shape import Shape

_SHAPES = 10_000
"""Shapes whose answers are kept. Callers can think of any number of shapes."""
_GOOD_BATCHES = 8
"""A ceiling that an out-of-memory lowered grows by one after so many full batches."""


@dataclass
class _Cap:
    """A shape's ceiling since it ran out of memory, and the full batches that went well since."""

    batch: int
    good: int = 0


@dataclass(frozen=True)
class _Allowance:
    """The budget's answers about one shape. They hold until weights, corrections or caps change (`state`)."""

    state: int
    fits: bool
    runs_alone: bool
    ceiling: int


class Budget:
    """limit: bytes for weights and forwards together, the device's context apart. lanes: forwards side by side."""

    def __init__(self, *, limit: int, overhead: Overhead, lanes: int = 1) -> None:
        self.limit = limit
        self.overhead = overhead
        self._lanes = lanes
        self._weights: dict[str, int] = {}
        self._corrections: dict[str, Correction] = {}
        self._caps: dict[Shape, _Cap] = {}
        self._allowances: dict[Shape, _Allowance] = {}
        self._state = 0
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """The limit and the device's context: the bytes that the operator asked for."""
        return self.limit + self.overhead.context

    @property
    def weights(self) -> int:
        """Bytes of all weights that are or will be on the device."""
        return sum(self._weights.values())

    @property
    def room(self) -> int:
        """Bytes that a forward may take if it has no other beside it."""
        return self.limit - self.weights

    def hold(self, model: str, weights_bytes: int) -> None:
        """These bytes belong to an encoder's weights from now on."""
        with self._lock:
            self._weights[model] = weights_bytes
            self._state += 1

    def drop(self, model: str) -> None:
        """An encoder's weights are gone."""
        with self._lock:
            self._weights.pop(model, None)
            self._state += 1

    def held(self, model: str) -> int:
        """Bytes of this encoder's weights; 0 if it is not on the device."""
        return self._weights.get(model, 0)

    def need(self, shape: Shape, batch: int = 1) -> int:
        """Bytes that must be free for a forward."""
        return self.overhead.reserved(shape.cost, batch) + self.excess(shape.model, self.predicted(shape, batch))

    def fits(self, shape: Shape) -> bool:
        """Whether one item of this shape can run at all beside the weights."""
        return self._allowance(shape).fits

    def ceiling(self, shape: Shape) -> int:
        """The most items that one forward of this shape may take beside others; at least 1, which may run alone."""
        return self._allowance(shape).ceiling

    def runs_alone(self, shape: Shape) -> bool:
        """Whether a forward of even one item takes more than its share beside others."""
        return self._allowance(shape).runs_alone

    def predicted(self, shape: Shape, batch: int) -> int:
        """Bytes that the allocator is expected to give a forward, uncorrected."""
        return self.overhead.allocated(shape.cost, batch)

    def excess(self, model: str, predicted: int) -> int:
        """Bytes that a forward of this model is expected to take beyond its prediction."""
        return self._correction(model).excess(predicted)

    def measured(self, shape: Shape, batch: int, peak: int) -> float | None:
        """Correct by a forward's measured peak. Gives peak / prediction, None if nothing was predicted."""
        predicted = self.predicted(shape, batch)
        if not predicted:
            return None
        with self._lock:
            self._state += self._corrections.setdefault(shape.model, Correction()).learn(predicted, peak)
        return peak / predicted

    def ran(self, shape: Shape, batch: int) -> None:
        """A batch went well."""
        if shape not in self._caps:
            return
        with self._lock:
            cap = self._caps.get(shape)
            if cap is None:  # forgotten meanwhile
                return
            cap.good += batch >= cap.batch
            if cap.good >= _GOOD_BATCHES:
                self._caps[shape] = _Cap(cap.batch + 1)
                self._state += 1

    def ran_out(self, shape: Shape, batch: int) -> None:
        """A batch found no room on the device: halve its shape's ceiling, and remember it."""
        with self._lock:
            self._caps[shape] = _Cap(max(1, batch // 2))
            while len(self._caps) > _SHAPES:
                del self._caps[next(iter(self._caps))]
            self._state += 1

    def _allowance(self, shape: Shape) -> _Allowance:
        known = self._allowances.get(shape)
        if known is not None and known.state == self._state:
            return known
        state, room = self._state, self.room  # the state first: what changes meanwhile is worked out again
        share = room // self._lanes
        need = self.need(shape)
        ceiling = self._ceiling(shape, share)
        allowance = _Allowance(state, need <= room, self._lanes > 1 and need > share, ceiling)
        with self._lock:
            self._allowances[shape] = allowance
            while len(self._allowances) > _SHAPES:
                del self._allowances[next(iter(self._allowances))]
        return allowance

    def _ceiling(self, shape: Shape, share: int) -> int:
        fits = self.overhead.largest_batch(shape.cost, share)
        cap = self._caps.get(shape)
        if cap is not None:
            fits = min(fits, cap.batch)
        uploads = self.overhead.uploads * shape.upload_bytes
        if uploads or self._correction(shape.model):
            fits = bisect_right(range(1, fits + 1), share, key=lambda batch: self.need(shape, batch) + batch * uploads)
        return max(1, fits)

    def _correction(self, model: str) -> Correction:
        """To ask: a model of which nothing was learnt has none of its own."""
        return self._corrections.get(model, _NONE)


_NONE = Correction()
