"""What traces say of the queue and of batches (telemetry/tracing.py)."""

from collections.abc import Sequence

from encoders.contract.errors import VisiontowerError
from service.memory.shape import ImageShape
from service.scheduling.batch import Outcome
from service.scheduling.items import Item
from service.scheduling.queue import Taken, Waiting
from service.telemetry.tracing import Attributes, Waited, trace_batch, trace_wait


def trace_forward(
    taken: Taken[Item],
    outcomes: Sequence[Outcome],
    *,
    started: float,
    ended: float,
    now: float,
    attributes: Attributes,
) -> None:
    """The batch has run. Times are of the queue's clock."""
    items = [
        Waited(waiting.item.trace, waiting.since, _error(outcome))
        for waiting, outcome in zip(taken.batch, outcomes, strict=True)
        if waiting.item.trace is not None
    ]
    about: dict[str, str | int | float] = {
        "visiontower.model": taken.shape.model,
        "visiontower.items": len(taken.batch),
        **attributes,
    }
    if isinstance(taken.shape, ImageShape):
        about["visiontower.resolution"] = f"{taken.shape.size.height}x{taken.shape.size.width}"
    trace_batch(items, started=started, ended=ended, now=now, attributes=about)


def trace_unserved(waited: Waiting[Item], *, now: float) -> None:
    """An item has left the queue without a forward: its deadline has passed, or nobody waits for it any more."""
    if waited.item.trace is not None:
        trace_wait(Waited(waited.item.trace, waited.since, "unserved"), now=now)


def _error(outcome: Outcome) -> str | None:
    return type(outcome).__qualname__ if isinstance(outcome, VisiontowerError) else None
