"""Reading from servers that are busy or out of reach for a while."""

import io
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import httpx

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError
from service.bulk.sources.place import shown

T = TypeVar("T")
_BLOCK_BYTES = 4 * 1024 * 1024
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_WORDS = (
    *("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"),
    "OAuth2 access token",  # Google's, where there are no credentials
)
"""Of pyarrow's errors, whose class is OSError whatever happened."""


class Refused(OSError):
    """An answer that will be the same next time."""


class NoSuchServer(Refused):
    """There is none of this name."""


class OutOfReach(BulkError):
    """Asked again for as long as it was worth, a server gave nothing. Its last error is the cause."""


@dataclass(frozen=True)
class Patience:
    """Pauses between tries, each up to twice the one before, in seconds. total_s: of all pauses of one read."""

    first_s: float = 0.5
    longest_s: float = 15.0
    total_s: float = 120.0

    def read(self, name: str, action: Callable[[], T], stop: threading.Event | None = None) -> T:
        """The action's result, after as many tries as it takes.

        A server that throttles (503 SlowDown, 429), fails or does not answer is asked again. Raises OutOfReach if that
        goes on for total_s, BulkError if `stop` is set, and OSError at once where trying again cannot help.
        """
        stop = stop or threading.Event()
        longest, spent = self.first_s, 0.0
        while True:
            try:
                return action()
            except (OSError, httpx.HTTPError) as error:
                if isinstance(error, (*_FINAL, Refused)) or any(word in str(error) for word in _FINAL_WORDS):
                    raise
                if spent >= self.total_s:
                    raise OutOfReach(
                        f"{shown(name)} could not be read for {self.total_s:g} s: {reason(error)}. "
                        "What is done is kept: the same command continues."
                    ) from error
            pause = longest * random.uniform(0.5, 1.0)  # so that many threads do not come back at the same moment
            if stop.wait(pause):
                raise BulkError("The run ends: nothing more is read.")
            spent += pause
            longest = min(2 * longest, self.longest_s)

    def image(self, name: str, read: Callable[[], bytes], stop: threading.Event) -> bytes | ImageError:
        """An image whose bytes `read` gives, as `self.read`. What cannot be helped is an error of the image."""
        try:
            return self.read(name, read, stop)
        except OSError as error:
            return ImageError(f"{shown(name)} cannot be read: {reason(error)}.")

    def file(self, name: str, size: int, part: Callable[[int, int], bytes]) -> BinaryIO:
        """A file that is read in large blocks. part(start, stop): its bytes from start up to stop."""
        return io.BufferedReader(
            _Ranged(size, lambda start, stop: self.read(name, lambda: part(start, stop))), _BLOCK_BYTES
        )


class _Ranged(io.RawIOBase):
    """A file of a known size whose parts come from elsewhere."""

    def __init__(self, size: int, part: Callable[[int, int], bytes]) -> None:
        self._size, self._part, self._at = size, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "io.WriteableBuffer") -> int:  # type: ignore[name-defined]
        view = memoryview(buffer)
        stop = min(self._at + len(view), self._size)
        if stop <= self._at:
            return 0
        got = self._part(self._at, stop)
        view[: len(got)] = got
        self._at += len(got)
        return len(got)


def reason(error: BaseException) -> str:
    """What happened, without what the reader cannot use."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(" ".join(words.split()))[:300].rstrip(".")
