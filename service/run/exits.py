"""How `visiontower serve` ends: its exit statuses, and the signals until there is something to end in order."""

import logging
import os
import signal
from types import FrameType
from typing import NoReturn

_log = logging.getLogger(__name__)

OK = 0
CANNOT_LISTEN = 1
"""So does a process end whose event loop stands still (server.py): faulthandler has no other status."""
WRONG_SETTING = 2
"""A flag or a variable is wrong; the command line has it too."""
FAILED = 3
"""An encoder could not be loaded, or a device thread has ended. uvicorn has it for the first."""
HUNG = 4
"""A forward has taken far too long (setting on_hang)."""
GAVE_UP = 5
"""Of several processes: one could not be replaced, as its successors did not start."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_at_once_on_signals() -> None:
    """From now on a signal ends the process at once, with status 0: nothing has been admitted yet.

    The server takes the signals over when it runs. Process 1 of a container needs this: what it does not handle is
    ignored. To be called on the main thread.
    """
    for each in SIGNALS:
        signal.signal(each, _end)


def end(status: int) -> NoReturn:
    """End the process now, its log written.

    Threads inside a library cannot be joined, and what libraries print at the end of an interpreter is no log.
    """
    if status == HUNG:
        _log.critical("the device hangs: the process ends with status %d and has to be started anew", status)
    logging.shutdown()
    os._exit(status)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(OK)
