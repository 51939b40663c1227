"""Bounds the work inside: counts the images and texts that are admitted and not yet answered.

A request is refused here at once, before any of its bytes are decoded. So everything behind is bounded. Lives on the
event loop; takes no lock.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Overloaded, ShuttingDown

_HISTORY = 64
"""Completed requests that the estimate of Retry-After looks back on."""
_LONGEST_RETRY_S = 60
_KEPT = 8
"""This part of the images' permits is kept for requests of one image."""


class Admission:
    """Permits for images and texts. `admit` takes them all or none; they come back when the request ends.

    Requests of several images leave an eighth of the permits to those of one, unless nobody is inside.
    """

    def __init__(self, *, images: int, texts: int, clock: Callable[[], float]) -> None:
        self._limits = {"images": images, "texts": texts}
        self._inside = {"images": 0, "texts": 0}
        self._clock = clock
        self._left = {kind: deque[tuple[float, int]](maxlen=_HISTORY) for kind in self._limits}  # when, how many
        self._requests = 0  # inside; of known texts alone they hold no permit
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

        self.is_full = False
        """Whether `check` refuses. A look at it is cheaper than the call."""

    @property
    def is_open(self) -> bool:
        """False once the server drains."""
        return not self._closed

    def inside(self, kind: str) -> int:
        """How many `images` or `texts` are admitted now."""
        return self._inside[kind]

    @property
    def fullness(self) -> float:
        """The part of the permits that is held, of images or of texts, whichever is scarcer; 1 is all of them."""
        return max(inside / self._limits[kind] for kind, inside in self._inside.items())

    def check(self) -> None:
        """Refuse at once a request that could not be admitted anyway. Raises Overloaded or ShuttingDown."""
        self._require(images=1, texts=0)

    @contextmanager
    def admit(self, *, images: int, texts: int = 0) -> Iterator[None]:
        """Hold permits for the block. Raises Overloaded or ShuttingDown."""
        self._require(images=images, texts=texts)
        inside, most = self._inside, self._limits["images"]
        inside["images"] += images
        inside["texts"] += texts
        self.is_full = self._closed or inside["images"] >= most
        self._requests += 1
        self._empty.clear()
        try:
            yield
        finally:
            inside["images"] -= images
            inside["texts"] -= texts
            self.is_full = self._closed or inside["images"] >= most
            for kind, count in (("images", images), ("texts", texts)):
                if count:
                    self._left[kind].append((self._clock(), count))
            self._requests -= 1
            if not self._requests:
                self._empty.set()

    def close(self) -> None:
        """Admit nobody from now on."""
        self._closed = self.is_full = True

    @property
    def is_empty(self) -> bool:
        """Whether all that was admitted has left."""
        return self._empty.is_set()

    async def empty(self) -> None:
        """Wait until all that was admitted has left."""
        await self._empty.wait()

    def _require(self, **wanted: int) -> None:
        if self._closed:
            raise ShuttingDown
        for kind, count in wanted.items():
            limit = self._limits[kind]
            if kind == "images" and count > 1 and self._inside[kind]:
                limit -= limit // _KEPT
            if count and self._inside[kind] + count > limit:
                raise Overloaded(
                    what=kind,
                    waiting=self._inside[kind],
                    limit=limit,
                    retry_after_s=self._retry_after_s(kind),
                )

    def _retry_after_s(self, kind: str) -> int:
        """Whole seconds until the work of this kind inside now has left, at the recent pace; 1 without a history."""
        left = self._left[kind]
        if not left:
            return 1
        elapsed = self._clock() - left[0][0]
        done = sum(count for _, count in left)
        return max(1, min(_LONGEST_RETRY_S, math.ceil(self._inside[kind] * elapsed / done)))
