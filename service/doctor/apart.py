"""Looks in a process of their own: what they do to it, the doctor survives.

A torch for another processor ends its process at the import, a device that hangs keeps it for ever, and a control group
kills it for its memory.
"""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from service.doctor.facts import Maybe, Unknown, looked

Look: TypeAlias = Callable[[], Any]
"""A function of a module, whose value can be pickled."""


def apart(looks: Sequence[Look], *, within_s: float) -> dict[Look, Maybe[Any]]:
    """What each gives, one after the other in one new process. within_s: for each of them.

    Where the process ends or gives no answer in time, that is what is told of this look and of those that follow.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(looks, sender))
    process.start()
    sender.close()  # the process has its own; once that is gone, `recv` raises
    found: dict[Look, Maybe[Any]] = {}
    try:
        for look in looks:
            if not receiver.poll(within_s):
                return _rest(looks, found, f"there was no answer within {within_s:.0f} s")
            found[look] = receiver.recv()
    except EOFError:
        process.join()
        return _rest(looks, found, f"the process ended with {_shown(process.exitcode or 0)}")
    finally:
        process.kill()
        process.join()
        receiver.close()
    return found


def _rest(looks: Sequence[Look], found: dict[Look, Maybe[Any]], reason: str) -> dict[Look, Maybe[Any]]:
    return dict.fromkeys(looks, Unknown(reason)) | found


def _tell(looks: Sequence[Look], sender: Connection) -> None:
    os.dup2(sys.stderr.fileno(), 1)  # what libraries print must not come between the parent's lines
    warnings.simplefilter("ignore")
    with suppress(BrokenPipeError):
        for look in looks:
            sender.send(looked(look))


def _shown(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    name = signal.Signals(-status).name
    return f"{name} (out of memory, if nobody killed it)" if name == "SIGKILL" else name
