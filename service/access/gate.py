"""The gate: whose request it is, and whether its key has room for it now. Lives on the event loop.

If what a key has used cannot be counted, its requests are let in: the log says so. A key itself is always needed.
Counting is not tried again for a while then: a file that somebody holds is waited for, and the event loop waits too.
"""

import logging
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic_settings import SettingsError

from encoders.contract.errors import VisiontowerError
from service.access.errors import DayUsedUp, ImagesInFlight, InvalidKey, RequestsTooFast, TooManyImagesForKey
from service.access.key_ring import KeyRing
from service.access.keys import Key, Keys
from service.access.usage import Usage

T = TypeVar("T")

_log = logging.getLogger(__name__)
_SAID_S = 60.0
"""Between two words about counts that fail."""
_PAUSE_S = 2.0
"""After a count that has failed, until one is tried again."""
_RETRY_S = 1


@dataclass
class Counted:
    """Images of a request that count for its key's day. Those that the server has failed are to be taken off.

    if_refused: as many count if the request is refused in the end: those for which it is.
    """

    images: int
    if_refused: int = 0


class Gate:
    """Keys and what they use."""

    def __init__(
        self,
        entries: Sequence[str],
        path: Path | None,
        *,
        usage: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """entries, path: as of KeyRing; usage: as of Usage. wall: seconds since 1970.

        Raises SettingsError for keys or usage that cannot be read.
        """
        try:
            self._ring = KeyRing(entries, path, clock=clock)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        self._usage = Usage(usage, clock=wall)
        self._in_flight: Counter[str] = Counter()
        self._clock = clock
        self._silent_until = self._paused_until = -math.inf

    @property
    def keys(self) -> Keys:
        """Those of now; another object once they have changed."""
        return self._ring.keys

    def close(self) -> None:
        """Nobody enters after it."""
        self._usage.close()

    def enter(self, secrets: set[bytes]) -> Key:
        """The key of a request that presents these. The request counts. Raises InvalidKey or RequestsTooFast."""
        if len(secrets) != 1:
            raise InvalidKey("different keys were sent" if secrets else "none was sent")
        (secret,) = secrets
        key = self._ring.keys.find(secret)
        if key is None:
            raise InvalidKey("the key that was sent is none of this server's")
        if key.requests_per_second is not None:
            wait_s = self._counted(partial(self._usage.request, key.name, per_second=key.requests_per_second))
            if wait_s:
                raise RequestsTooFast(key.name, limit=key.requests_per_second, retry_after_s=math.ceil(wait_s))
        return key

    @contextmanager
    def images(self, key: Key, number: int) -> Iterator[Counted]:
        """Images of one request are worked on in the block. They count for the day, unless it raises: see Counted.

        Raises TooManyImagesForKey, ImagesInFlight or DayUsedUp.
        """
        for field in ("images_in_flight", "images_per_day"):
            limit = getattr(key, field)
            if limit is not None and number > limit:
                raise TooManyImagesForKey(key.name, field=field, actual=number, limit=limit)
        in_flight = self._in_flight[key.name]
        if key.images_in_flight is not None and number and in_flight + number > key.images_in_flight:
            raise ImagesInFlight(key.name, inside=in_flight, limit=key.images_in_flight, retry_after_s=_RETRY_S)
        day = None
        if number and key.images_per_day is not None:
            day = self._counted(partial(self._of_day, key.name, number, per_day=key.images_per_day))
        self._in_flight[key.name] += number
        counted = Counted(number)
        try:
            yield counted
        except BaseException as error:
            counted.images = counted.if_refused if isinstance(error, VisiontowerError) else 0
            raise
        finally:
            self._in_flight[key.name] -= number
            if day is not None and counted.images < number:
                self._counted(partial(self._usage.give_back, key.name, number - counted.images, day=day))

    def _of_day(self, key: str, number: int, *, per_day: int) -> str:
        """Give the day for which images count. Raises DayUsedUp."""
        if (day := self._usage.images(key, number, per_day=per_day)) is not None:
            return day
        left, wait_s = per_day - self._usage.today(key), self._usage.seconds_left()
        raise DayUsedUp(key, left=max(0, left), limit=per_day, retry_after_s=wait_s)

    def _counted(self, count: Callable[[], T]) -> T | None:
        """What it gives; None if nothing can be counted now."""
        if self._clock() < self._paused_until:
            return None
        try:
            return count()
        except sqlite3.Error as error:
            now = self._clock()
            self._paused_until = now + _PAUSE_S
            if now >= self._silent_until:
                self._silent_until = now + _SAID_S
                _log.error("what keys have used cannot be counted, and their requests are let in: %s", error)
        return None
