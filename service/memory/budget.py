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
class Allowance:
    """The budget's answers about one shape. They hold until weights, corrections or caps change (`Budget.state`).

    fits: one item can run at all beside the weights. runs_alone: a forward of even one item takes more than its share
    beside others. ceiling: the most items that one forward may take beside others; at least 1, which may run alone.
    """

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
        self.caps: dict[Shape, _Cap] = {}
        """Shapes that ran out of memory."""
        self.state = 0
        """Counts the changes of weights, corrections and caps."""
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
            self.state += 1

    def drop(self, model: str) -> None:
        """An encoder's weights are gone."""
        with self._lock:
            self._weights.pop(model, None)
            self.state += 1

    def held(self, model: str) -> int:
        """Bytes of this encoder's weights; 0 if it is not on the device."""
        return self._weights.get(model, 0)

    def allowance(self, shape: Shape) -> Allowance:
        """The answers about this shape, to be kept for as long as `state` is theirs."""
        state, room = self.state, self.room  # the state first: a change meanwhile makes the answers old
        share = room // self._lanes
        need = self.need(shape)
        return Allowance(state, need <= room, self._lanes > 1 and need > share, self._ceiling(shape, share))

    def need(self, shape: Shape, batch: int = 1) -> int:
        """Bytes that must be free for a forward."""
        return self.overhead.reserved(shape.cost, batch) + self.excess(shape.model, self.predicted(shape, batch))

    def predicted(self, shape: Shape, batch: int) -> int:
        """Bytes that the allocator is expected to give a forward, uncorrected."""
        return self.overhead.allocated(shape.cost, batch)

    def excess(self, model: str, predicted: int) -> int:
        """Bytes that a forward of this model is expected to take beyond its prediction."""
        return self._correction(model).excess(predicted)

    def measured(self, shape: Shape, batch: int, peak: int) -> float:
        """Correct by a forward's measured peak. Gives peak / prediction, which must not be 0."""
        predicted = self.predicted(shape, batch)
        with self._lock:
            self.state += self._corrections.setdefault(shape.model, Correction()).learn(predicted, peak)
        return peak / predicted

    def ran(self, shape: Shape, batch: int) -> None:
        """A batch of a shape that once ran out of memory went well."""
        with self._lock:
            cap = self.caps.get(shape)
            if cap is None:  # forgotten meanwhile
                return
            cap.good += batch >= cap.batch
            if cap.good >= _GOOD_BATCHES:
                self.caps[shape] = _Cap(cap.batch + 1)
                self.state += 1

    def ran_out(self, shape: Shape, batch: int) -> None:
        """A batch found no room on the device: halve its shape's ceiling, and remember it."""
        with self._lock:
            self.caps[shape] = _Cap(max(1, batch // 2))
            while len(self.caps) > _SHAPES:
                del self.caps[next(iter(self.caps))]
            self.state += 1

    def _ceiling(self, shape: Shape, share: int) -> int:
        fits = self.overhead.largest_batch(shape.cost, share)
        cap = self.caps.get(shape)
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
