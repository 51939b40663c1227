"""What a bulk run would take: rows, bytes, memory, and time at the pace of its first batches. Writes nothing."""

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from service.bulk.embedding import EngineEmbedder
from service.bulk.room import Room
from service.bulk.run import Job
from service.engine.engine import Engine
from service.engine.values import PlanRequest

_BATCHES = 8
_SECONDS = 20.0
"""The pace is measured until the first of these."""


@dataclass(frozen=True)
class Forecast:
    """rows: None if they are not known before. memory: bytes of the device for weights and a forward of one batch.

    measured: items that the pace is of; items_s: items a second.
    """

    rows: int | None
    room: Room
    memory: int
    measured: int
    items_s: float


async def forecast(job: Job, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> Forecast:
    """The first batches are embedded, and dropped. The first of them starts the clock, if there are several.

    Raises as `run`.
    """
    sink = job.sink()
    embedder = EngineEmbedder(engine)
    columns = (await embedder.described(job.request, job.inputs.columns)).columns
    rows = job.inputs.total
    plan = await engine.plan(
        PlanRequest(
            model=job.request.model,
            resolutions=() if job.request.resolution is None else (job.request.resolution,),
            batches=(job.batch_size,),
            output=job.request.output,
            layer=job.request.layer,
        )
    )
    begun = clock()
    ends: list[tuple[float, int]] = []
    ready = embedder.batches(partial(job.inputs.rows, 0), job.request, columns, batch_size=job.batch_size)
    async with aclosing(ready):
        async for rows_ in ready:
            ends.append((clock(), len(rows_)))
            if len(ends) == _BATCHES or clock() - begun > _SECONDS:
                break
    since, counted = (ends[0][0], ends[1:]) if len(ends) > 1 else (begun, ends)
    measured = sum(items for _, items in counted)
    seconds = max(ends[-1][0] - since, 1e-9) if ends else 1.0
    room = Room.of(job.out, rows, columns.row_bytes, is_sharded=sink.is_sharded)
    return Forecast(rows, room, plan.rows[0].row.prediction.total_bytes, measured, measured / seconds)
