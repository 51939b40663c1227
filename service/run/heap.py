"""The heap of this process: what requests have freed goes back to the machine. Of glibc; elsewhere nothing happens.

glibc keeps freed memory unless it lies at the end of a heap, and what lives on usually lies behind it.
"""

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_STATM = Path("/proc/self/statm")
_EVERY_S = 30.0
_GROWN = 1.1
"""A process that has grown by less is left alone: giving back takes tenths of a second for a gigabyte."""


def give_back() -> None:
    """Give freed memory, and that of garbage, back to the machine. Threads that allocate meanwhile wait.

    In a quiet process the collector would not come for long to what a cancelled request left.
    """
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Bytes of the machine's memory that this process has; 0 where that cannot be read."""
    with suppress(OSError):
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class Heap:
    """Gives memory back when nothing is at work, at most twice a minute, if the process has grown since it last did."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        resident: Callable[[], int] = resident_bytes,
        give_back: Callable[[], None] = give_back,
    ) -> None:
        self._clock = clock
        self._resident = resident
        self._give_back = give_back
        self._settled = 0  # bytes, after memory was last given back
        self._due = clock() + _EVERY_S
        self._thread: threading.Thread | None = None

    def look(self, *, is_idle: bool) -> None:
        """To be called several times a second. The work is done on a thread."""
        now = self._clock()
        if not is_idle or now < self._due:
            return
        self._due = now + _EVERY_S
        if self._resident() > _GROWN * self._settled and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="heap", daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Wait until the work that `look` has begun is done."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        self._give_back()
        self._settled = self._resident()
