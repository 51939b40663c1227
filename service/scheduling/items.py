"""Items that wait for a device thread, and how the futures end through which the event loop waits for them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.scheduling.resident import Resident
from service.telemetry.tracing import Trace

R = TypeVar("R")


@dataclass(frozen=True)
class Answer(Generic[R]):
    """One item's row, and the seconds it waited and its batch ran.

    forward_s: from the batch's beginning until its rows were there. Of a batch begun behind another it includes the
    rest of that one, so that the throughput learnt from it is never too high.
    """

    row: R
    queue_s: float
    forward_s: float


@dataclass
class Item:
    """An image's pixels or a text's ids, for an encoder; None while the pixels are being made.

    trace: of its request, if that is traced.
    """

    resident: Resident
    payload: Any
    future: asyncio.Future[Any]
    trace: Trace | None = None
    ticket: int | None = None
    """Its place in the queue, once it is there."""


def resolve(future: asyncio.Future[Any], result: object) -> None:
    """It ends with this result, unless it is done: its caller left, or the drain deadline passed."""
    if not future.done():
        future.set_result(result)


def fail(futures: Sequence[asyncio.Future[Any]], error: BaseException) -> None:
    """All that are not done end with this error."""
    for future in futures:
        if not future.done():
            future.set_exception(error)
