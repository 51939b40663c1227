"""The nearest of many vectors by cosine: exact, block by block, on all cores. Knows rows and numbers, no encoder."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.contract.values import Floats
from encoders.memory.machine import available_cores
from service.bulk.results import Result, Stretch
from service.bulk.rows import Array

_MOST_THREADS = 16
"""Each holds a block and what its file reads ahead."""
_TINY = np.finfo(np.float32).tiny
_SHORT = 1e-15
"""The square of a shorter vector's numbers loses digits in float32."""


@dataclass(frozen=True)
class Nearest:
    """The best rows, the best first; of equal ones the first. vectors: how many were compared."""

    rows: NDArray[np.int64]
    cosines: Floats
    vectors: int

    def joined(self, other: "Nearest", k: int) -> "Nearest":
        """The best of both; all rows of `other` come later."""
        rows = np.concatenate([self.rows, other.rows])
        cosines = np.concatenate([self.cosines, other.cosines])
        best = np.argsort(-cosines, kind="stable")[:k]
        return Nearest(rows[best], cosines[best], self.vectors + other.vectors)


_NONE = Nearest(np.empty(0, np.int64), np.empty(0, np.float32), 0)


def nearest(result: Result, query: Floats, k: int, *, progress: Callable[[int], None] = lambda rows: None) -> Nearest:
    """The `k` rows with the greatest cosine to the query [width], or all if there are fewer.

    Vectors need not have length 1. A row without a vector is passed over. progress: called with rows done, each once.
    Raises BulkError if the file turns out to be damaged.
    """
    unit = query.astype(np.float32) / max(np.linalg.norm(query), _TINY)
    found, first = _NONE, 0
    pool = ThreadPoolExecutor(min(_MOST_THREADS, available_cores()), thread_name_prefix="search")
    try:
        for stretch, best in zip(
            result.stretches, pool.map(lambda stretch: _best(stretch, unit, k), result.stretches), strict=True
        ):
            found = found.joined(Nearest(best.rows + first, best.cosines, best.vectors), k)
            first += stretch.rows
            progress(stretch.rows)
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _best(stretch: Stretch, unit: Floats, k: int) -> Nearest:
    """Rows are counted from the stretch's first."""
    found, first = _NONE, 0
    for block in stretch.blocks():
        scores = cosines(block, unit)
        worst = found.cosines[-1] if len(found.rows) == k else -np.inf
        rows = np.flatnonzero(scores > worst)  # a later row that is equal comes behind; NaN is never greater
        found = found.joined(Nearest(rows + first, scores[rows], int(np.isfinite(scores).sum())), k)
        first += len(block)
    return found


def cosines(block: Array, unit: Floats) -> Floats:
    """Of vectors [n, width] with one of length 1; NaN for a vector that has NaN or infinity, 0 for a zero vector.

    A vector gets the same number wherever it stands: each is summed by itself, which a product of matrices does not.
    """
    wide = widened(block)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.vecdot(wide, wide))
        scores: Floats = np.vecdot(wide, unit) / np.maximum(lengths, _TINY)
        beyond = np.flatnonzero((lengths < _SHORT) | np.isinf(lengths))  # their squares are no numbers of float32
        if len(beyond):
            scores[beyond] = _scaled_cosines(wide[beyond], unit)
    return scores


def _scaled_cosines(wide: Floats, unit: Floats) -> Floats:
    """As `cosines`, once the largest number of each vector is 1."""
    scaled = wide / np.maximum(np.abs(wide).max(axis=1, keepdims=True), _TINY)
    cosines: Floats = np.vecdot(scaled, unit) / np.maximum(np.sqrt(np.vecdot(scaled, scaled)), _TINY)
    return cosines


def widened(block: Array) -> Floats:
    """In float32, the same values. Halves by their bits, four times as fast as NumPy's own conversion."""
    if block.dtype != np.float16:
        return block.astype(np.float32, copy=False)
    bits = np.ascontiguousarray(block).view(np.int16).astype(np.int32)
    bits <<= 13  # the exponent and the fraction to their places; the sign was spread to the left
    bits &= np.int32(-0x7000_2000)  # 0x8fffe000: without the sign's copies
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)  # the exponents count from 127, not from 15
    if max(wide.max(initial=0), -wide.min(initial=0)) >= 2**16:  # no half is: it was infinite or NaN
        return block.astype(np.float32)
    return wide
