"""Rows by what they were computed from, in memory before an optional disk. Each is computed once at a time.

The key is a SHA-256 over the image's bytes and all that changes its numbers. So a row is never out of date: whatever is
changed asks for another key.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias

from encoders.contract.errors import VisiontowerError
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Encoded, ImageSize, Outputs
from service.engine.cache.disk import Disk
from service.engine.cache.row import KeptRow, copied, nbytes_of, seal
from service.engine.lru import Lru
from service.engine.origin import Origin, origin_of
from service.errors import DeadlineExceeded, Unavailable
from service.memory.shape import ImageShape
from service.scheduling.items import Answer
from service.telemetry.metrics import Metrics

_INLINE_BYTES = 131_072
"""Up to so many bytes the event loop hashes or copies itself: cheaper than the way to a thread and back."""

Made: TypeAlias = Answer[Encoded] | VisiontowerError


class Found(NamedTuple):
    """age_s: seconds since the row was made, of one that was not made for this asker; None for one that was."""

    made: Made
    age_s: float | None


@dataclass(eq=False)
class _Flight:
    """A row that is being made. outcome: once there is one that holds for whoever asks for the row."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Found | None = None


class ResultCache:
    """Lives on the event loop. limit: bytes in memory.

    about: beside an encoder and what is asked of it, all that changes numbers. now: seconds since the epoch.
    """

    def __init__(
        self,
        limit: int,
        *,
        about: Iterable[str],
        metrics: Metrics,
        disk: Disk | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._rows: Lru[bytes, KeptRow] = Lru(limit)
        self._flights: dict[bytes, _Flight] = {}
        self._about = tuple(about)
        self._metrics = metrics
        self._disk = disk
        self._now = now
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="cache")

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes that are kept, by store; of the disk as it was last seen."""
        in_memory = {"memory": self._rows.nbytes}
        return in_memory if self._disk is None else {**in_memory, "disk": self._disk.nbytes}

    def origin(self, spec: EncoderSpec, shape: ImageShape, *, in_tiles: bool) -> Origin | None:
        """Of the rows that this encoder makes for this shape; None if it does not say which weights it has."""
        if not spec.revision:
            return None
        return _image_origin(spec, shape.size, shape.outputs, in_tiles, self._about)

    async def row(self, image_bytes: bytes, origin: Origin, make: Callable[[], Awaitable[Made]]) -> Found:
        """The image's row, kept or made. `make` is run for one asker at a time and image.

        An error of the image's own is told to those who wait for the row, and not kept. If the asker for whom a row is
        made leaves, or fails for a reason of its own (it was late, the server was full), one of the others makes it.
        """
        key = await self._key(image_bytes, origin)
        found = await self._look_up(key, make)
        is_hit = found.age_s is not None
        self._metrics.cached(hits=is_hit, misses=not is_hit)
        return found

    async def _look_up(self, key: bytes, make: Callable[[], Awaitable[Made]]) -> Found:
        began = time.monotonic()
        while True:
            kept = self._rows.get(key)
            if kept is not None:
                return self._found(kept)
            flight = self._flights.get(key)
            if flight is None:
                return await self._make(key, make)
            await flight.ended.wait()
            if flight.outcome is not None:
                made, age_s = flight.outcome
                if isinstance(made, Answer):
                    return Found(Answer(made.row, queue_s=time.monotonic() - began, forward_s=0.0), age_s or 0.0)
                return flight.outcome

    async def _make(self, key: bytes, make: Callable[[], Awaitable[Made]]) -> Found:
        flight = self._flights[key] = _Flight()
        copying: asyncio.Future[Encoded | None] | None = None
        try:
            kept = None if self._disk is None else await self._disk.get(key)
            if kept is not None:
                self._rows.put(key, kept, kept.nbytes)
                flight.outcome = self._found(kept)
                return flight.outcome
            made = await make()
            if isinstance(made, Answer):
                seal(made.row)
                copying = self._keep(key, made.row)
            found = Found(made, None)
            if not isinstance(made, Unavailable | DeadlineExceeded):
                flight.outcome = found
            return found
        finally:
            flight.ended.set()
            if copying is None:
                del self._flights[key]
            else:  # until the copy is kept, the flight has the row
                copying.add_done_callback(partial(self._copied, key))

    def _found(self, kept: KeptRow) -> Found:
        return Found(Answer(kept.row, queue_s=0.0, forward_s=0.0), max(0.0, self._now() - kept.made))

    def _keep(self, key: bytes, row: Encoded) -> "asyncio.Future[Encoded | None] | None":
        """Keep a copy of the row; gives the copy if it is being made on a thread."""
        nbytes = nbytes_of(row)
        if nbytes > self._rows.limit and self._disk is None:
            return None
        if nbytes > _INLINE_BYTES:
            return asyncio.get_running_loop().run_in_executor(self._threads, copied, row)
        self._put(key, copied(row))
        return None

    def _copied(self, key: bytes, copying: "asyncio.Future[Encoded | None]") -> None:
        del self._flights[key]
        if not copying.cancelled():
            self._put(key, copying.result())

    def _put(self, key: bytes, row: Encoded | None) -> None:
        if row is not None:
            kept = KeptRow(row, self._now())
            self._rows.put(key, kept, kept.nbytes)
            if self._disk is not None:
                self._disk.put(key, kept)

    async def _key(self, image_bytes: bytes, origin: Origin) -> bytes:
        if len(image_bytes) <= _INLINE_BYTES:
            return _digest(image_bytes, origin)
        return await asyncio.get_running_loop().run_in_executor(self._threads, _digest, image_bytes, origin)

    def close(self) -> None:
        """End the threads; what is being written to the disk is written first."""
        self._threads.shutdown(wait=False)
        if self._disk is not None:
            self._disk.close()


@lru_cache(1000)
def _image_origin(
    spec: EncoderSpec, size: ImageSize, outputs: Outputs, in_tiles: bool, about: tuple[str, ...]
) -> Origin:
    """The whole spec: weights, preprocessing, dtype, device and runtime are in it."""
    return origin_of((repr(spec), repr(size), repr(outputs), f"in tiles: {in_tiles}", *about))


def _digest(image_bytes: bytes, origin: Origin) -> bytes:
    """SHA-256: nobody can make an image that has another's key, and processors have instructions for it."""
    digest = hashlib.sha256(origin)
    digest.update(image_bytes)
    return digest.digest()
