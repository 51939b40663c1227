"""Web servers that images come from. Some of a long list have gone, and must not keep the images of the others."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Lock
from urllib.parse import urlsplit

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError
from service.bulk.sources.place import shown
from service.bulk.sources.retries import NoSuchServer, OutOfReach, Patience, reason

_STRANGER_S = 5.0
"""So long is asked again a server that has given nothing yet, in seconds of pauses."""
MOST_IN_A_ROW = 64
"""So many images without one that came in between are no accident of theirs: the network is out of reach."""
_MOST_HOSTS = 10_000


class Hosts:
    """How long each server is worth asking again: the whole patience if it has given an image, less as a stranger.

    A server that has exhausted this is asked once for each further image, until one comes. Any thread may use it.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._lock = Lock()
        self._last: dict[str, float] = {}  # when it last gave one, monotonic; -inf: given up. The oldest first
        self._in_a_row = 0

    def image(self, url: str, read: Callable[[], bytes], stop: Event) -> bytes | ImageError:
        """The image that `read` gives, or its error. Raises BulkError at `stop`, or if no server gives anything."""
        host, began = _host(url), time.monotonic()
        patience = replace(self._patience, total_s=self._worth_s(host))
        try:
            content = patience.read(url, read, stop)
        except OutOfReach as error:
            return self._missed(url, error.__cause__ or error, since=began)
        except NoSuchServer as error:
            return self._missed(url, error, since=began)
        except OSError as error:  # an answer
            return _unreadable(url, error)
        self._came(host)
        return content

    def _worth_s(self, host: str) -> float:
        with self._lock:
            last = self._last.get(host)
        if last is None:
            return min(_STRANGER_S, self._patience.total_s)
        return 0.0 if last == -math.inf else self._patience.total_s

    def _came(self, host: str) -> None:
        with self._lock:
            self._in_a_row = 0
            self._keep(host, time.monotonic())

    def _missed(self, url: str, why: BaseException, *, since: float) -> ImageError:
        """Of an image that was asked for since then. If others of its server came meanwhile, it is the image."""
        host = _host(url)
        with self._lock:
            self._in_a_row += 1
            if self._last.get(host, -math.inf) < since:
                self._keep(host, -math.inf)
            if self._in_a_row < MOST_IN_A_ROW:
                return _unreadable(url, why)
            self._in_a_row = 0
        raise BulkError(
            f"{MOST_IN_A_ROW} images in a row could not be read, the last of them {shown(url)}: {reason(why)}. "
            "What is done is kept: the same command continues."
        ) from why

    def _keep(self, host: str, last: float) -> None:
        self._last.pop(host, None)
        self._last[host] = last
        if len(self._last) > _MOST_HOSTS:
            del self._last[next(iter(self._last))]


def _unreadable(url: str, why: BaseException) -> ImageError:
    return ImageError(f"{shown(url)} cannot be read: {reason(why)}.")


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:  # it will not be asked
        return url
