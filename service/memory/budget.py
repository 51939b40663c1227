"""Who has how many bytes of the device, and how large a batch the rest allows. Knows bytes and shapes; runs nothing.

On a card what forwards take never adds up: the encoders' weights and one forward must fit. For one runs at a time, and
where the next is begun behind it, on the same stream, it is given the same memory in turn, outputs included. All that
comes on top are pixels on their way (Overhead.uploads): a ceiling leaves room for them. A single item is admitted
without: if memory is that tight, the allocator waits until the pixels before have been read, and takes theirs.

Where forwards run side by side (lanes), the room is divided among them. A single item may still take all of it, alone.

A prediction is corrected by what is measured (correction.py). A batch that ran out of memory all the same halves its
shape's ceiling, which grows again with every few that went well.

Used from the event loop, the device threads and the threads that decode.
"""

import threading
from bisect import bisect_right
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from encoders.contract.cost import Cost
from encoders.memory.prediction import Overhead
from service.memory.correction import Correction
from service.scheduling.queue import BatchKey, ImageKey

_SHAPES = 10_000
"""Shapes whose costs are kept, the latest used; there are as many as callers can think of."""
_GOOD_BATCHES = 8
"""Full batches without trouble after which a ceiling lowered by an out-of-memory grows by one."""


@dataclass
class _Shape:
    """What is known of one key. cap: its ceiling since a batch ran out of memory; good: full batches since."""

    cost: Cost
    cap: int | None = None
    good: int = 0


class Budget:
    """limit: bytes for weights and forwards together, the device's context apart. lanes: forwards side by side."""

    def __init__(self, *, limit: int, overhead: Overhead, lanes: int = 1) -> None:
        self.limit = limit
        self._lanes = lanes
        self.overhead = overhead
        self._weights: dict[str, int] = {}
        self._corrections: defaultdict[str, Correction] = defaultdict(Correction)
        self._shapes: OrderedDict[BatchKey, _Shape] = OrderedDict()
        self._inside: Counter[BatchKey] = Counter()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """The limit and the device's context: what the operator asked for."""
        return self.limit + self.overhead.context

    @property
    def weights(self) -> int:
        """Bytes of all weights that are or will be on the device."""
        return sum(self._weights.values())

    @property
    def room(self) -> int:
        """Bytes that a forward may take, if it has no other beside it."""
        return self.limit - self.weights

    @property
    def _share(self) -> int:
        """Bytes that each of the forwards side by side may take."""
        return self.room // self._lanes

    def hold(self, model: str, weights_bytes: int) -> None:
        """From now on these bytes are an encoder's."""
        with self._lock:
            self._weights[model] = weights_bytes

    def drop(self, model: str) -> None:
        """An encoder's weights are gone."""
        with self._lock:
            self._weights.pop(model, None)

    def held(self, model: str) -> int:
        """Bytes of this encoder's weights; 0 if it is not there."""
        return self._weights.get(model, 0)

    def learn(self, key: BatchKey, cost: Cost) -> None:
        """What forwards of this key take; once known, all other questions about it cost microseconds."""
        with self._lock:
            self._shapes.setdefault(key, _Shape(cost))
            while len(self._shapes) > _SHAPES:
                self._shapes.popitem(last=False)

    def cost(self, key: BatchKey) -> Cost | None:
        """What was learnt of this key, if anything."""
        with self._lock:
            if key not in self._shapes:
                return None
            self._shapes.move_to_end(key)
            return self._shapes[key].cost

    @contextmanager
    def inside(self, *keys: BatchKey) -> Iterator[None]:
        """While items of these keys are admitted: room for one forward of each is not given away."""
        self._inside.update(keys)
        try:
            yield
        finally:
            self._inside.subtract(keys)
            self._inside += Counter()  # without the zeros

    @property
    def spoken_for(self) -> int:
        """Bytes of the largest forward of one item among what is inside."""
        return max((self.need(key) for key in list(self._inside)), default=0)

    def need(self, key: BatchKey, batch: int = 1) -> int:
        """Bytes that must be free for a forward; 0 for a key that was never learnt."""
        shape = self._shapes.get(key)
        if shape is None:
            return 0
        return self.overhead.reserved(shape.cost, batch) + self.excess(key.model, self.predicted(key, batch))

    def ceiling(self, key: BatchKey) -> int:
        """The most items that one forward of this key may take beside others, or 1, if need be alone."""
        shape = self._shapes.get(key)
        if shape is None:
            return 1
        share = self._share
        fits = self.overhead.largest_batch(shape.cost, share)
        if shape.cap is not None:
            fits = min(fits, shape.cap)
        uploads = self.overhead.uploads * _pixel_bytes(key)
        if uploads or self._corrections[key.model]:
            fits = bisect_right(range(1, fits + 1), share, key=lambda batch: self.need(key, batch) + batch * uploads)
        return max(1, fits)

    def runs_alone(self, key: BatchKey) -> bool:
        """Whether even a forward of one item takes more than may be taken beside others."""
        return self._lanes > 1 and self.need(key) > self._share

    def predicted(self, key: BatchKey, batch: int) -> int:
        """Bytes that the allocator is expected to give a forward, uncorrected; 0 for a key that was never learnt."""
        shape = self._shapes.get(key)
        return 0 if shape is None else self.overhead.allocated(shape.cost, batch)

    def excess(self, model: str, predicted: int) -> int:
        """Bytes that a forward of this model is expected to take beyond its prediction."""
        return self._corrections[model].excess(predicted)

    def measured(self, key: BatchKey, batch: int, peak: int) -> float | None:
        """Correct by a forward's measured peak; gives it as a ratio to the prediction, None if there was none."""
        predicted = self.predicted(key, batch)
        if not predicted:
            return None
        self._corrections[key.model].learn(predicted, peak)
        return peak / predicted

    def ran(self, key: BatchKey, batch: int) -> None:
        """A batch went well."""
        with self._lock:
            shape = self._shapes.get(key)
            if shape is None or shape.cap is None or batch < shape.cap:
                return
            shape.good += 1
            if shape.good >= _GOOD_BATCHES:
                shape.cap, shape.good = shape.cap + 1, 0

    def ran_out(self, key: BatchKey, batch: int) -> None:
        """A batch found no room on the device: halve its ceiling, and remember."""
        with self._lock:
            shape = self._shapes.get(key)
            if shape is not None:
                shape.cap, shape.good = max(1, batch // 2), 0


def _pixel_bytes(key: BatchKey) -> int:
    """Of one item, as it travels to the device beside a forward: uint8; texts do not."""
    return 3 * key.size.height * key.size.width if isinstance(key, ImageKey) else 0
