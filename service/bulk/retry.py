"""The items that failed, embedded once more, and their shards written anew, each whole."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa

from service.bulk.embedding import embedded, on_a_thread, read
from service.bulk.errors import BulkError
from service.bulk.items import Inputs, Item
from service.bulk.rows import Rows
from service.bulk.sinks import TableSink, write
from service.bulk.writing import Writing
from service.engine.engine import Engine
from service.engine.values import EmbedRequest


async def retry(
    writing: Writing, inputs: Inputs, request: EmbedRequest, engine: Engine, *, batch_size: int
) -> list[tuple[str, str]]:
    """The ids and errors of those that failed once more. The result is whole; ended early, some shards stay as before.

    Raises BulkError if the inputs are others now, or there is no room; and as `embedded`.
    """
    sink = writing.sink
    assert isinstance(sink, TableSink)
    failures: list[tuple[str, str]] = []
    start = 0
    for number in range(sink.shards):
        rows_here, places = await asyncio.to_thread(_failed, sink.read(number, ["id", "error"]))
        if places:
            once_more: list[tuple[str, str]] = []
            fresh: list[pa.RecordBatch] = []
            wanted = _wanted(places, inputs, start=start)
            while items := await on_a_thread(partial(read, wanted, batch_size)):
                batch = await embedded(items, request, engine)
                fresh.append(writing.columns.batch(batch.items, batch.outcomes))
                once_more += batch.failures
            rows = Rows(
                writing.columns,
                total=rows_here,
                failed=len(once_more),
                about=writing.about,
                tables=partial(_replaced, partial(sink.read, number), list(places), pa.Table.from_batches(fresh)),
            )
            await asyncio.to_thread(write, sink, number, rows, writing.manifest)
            failures += once_more
        start += rows_here
    return failures


def _failed(shard: Iterable[pa.Table]) -> tuple[int, dict[int, str]]:
    """How many rows the shard has; and of those that failed, the ids by their places, in order."""
    rows, failed = 0, dict[int, str]()
    for table in shard:
        places = np.flatnonzero(table["error"].is_valid().to_numpy())
        failed.update(zip((places + rows).tolist(), table["id"].take(places).to_pylist(), strict=True))
        rows += len(table)
    return rows, failed


def _wanted(places: Mapping[int, str], inputs: Inputs, *, start: int) -> Iterator[Item]:
    """The items at these places of the shard that begins at the start-th item."""
    first, last = min(places), max(places)
    found = 0
    for place, item in enumerate(islice(inputs.items(start + first), last - first + 1), first):
        if place not in places:
            continue
        if item.id != places[place]:
            raise BulkError(f"Item {start + place} was {places[place]}, and is {item.id}: the inputs are others now.")
        found += 1
        yield item
    if found < len(places):
        raise BulkError(f"The inputs end before item {start + last}: they are others now.")


def _replaced(shard: Callable[[], Iterable[pa.Table]], places: Sequence[int], fresh: pa.Table) -> Iterator[pa.Table]:
    """The shard's rows, those at these places by fresh ones."""
    begin = 0
    for before in shard():
        table = before.replace_schema_metadata(None).cast(fresh.schema)
        one, other = bisect_left(places, begin), bisect_left(places, begin + len(table))
        if other > one:
            order = np.arange(len(table))
            order[np.array(places[one:other]) - begin] = len(table) + np.arange(other - one)
            both = pa.concat_tables([table, fresh.slice(one, other - one)]).combine_chunks()
            table = both.take(pa.array(order))
        begin += len(table)
        yield table
