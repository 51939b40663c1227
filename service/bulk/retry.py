"""The items that failed, embedded once more, and their shards written anew, each whole."""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa

from service.bulk.embedder import Embedder
from service.bulk.errors import BulkError
from service.bulk.items import Inputs, Item, Row
from service.bulk.rows import Rows, failures_of
from service.bulk.sinks import TableSink, write
from service.bulk.writing import Writing
from service.engine.values import EmbedRequest


@dataclass(frozen=True)
class _Failed:
    """The rows of one shard whose items failed. start: of its items. ids: by the row's place, in order."""

    shard: int
    rows: int
    start: int
    ids: Mapping[int, str]


async def retry(
    writing: Writing, inputs: Inputs, request: EmbedRequest, embedder: Embedder, *, batch_size: int
) -> list[tuple[str, str]]:
    """The ids and errors of those that failed once more. The result is whole; ended early, some shards stay as before.

    Raises BulkError if the inputs are others now, or there is no room; and as `Embedder.batches`.
    """
    sink = writing.sink
    assert isinstance(sink, TableSink)
    failed = await asyncio.to_thread(_failed, sink)
    failures: list[tuple[str, str]] = []
    batches = embedder.batches(partial(_wanted, failed, inputs), request, writing.columns, batch_size=batch_size)
    async with aclosing(batches):
        rows = _Taken(batches)
        for shard in failed:
            fresh = await rows.take(len(shard.ids))
            once_more = failures_of(fresh)
            result = Rows(
                writing.columns,
                total=shard.rows,
                failed=len(once_more),
                about=writing.about,
                tables=partial(_replaced, partial(sink.read, shard.shard), list(shard.ids), fresh),
            )
            await asyncio.to_thread(write, sink, shard.shard, result, writing.manifest)
            failures += once_more
    return failures


class _Taken:
    """Rows of batches, taken in other numbers."""

    def __init__(self, batches: AsyncIterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._left: list[pa.RecordBatch] = []

    async def take(self, count: int) -> pa.Table:
        """The next `count` rows."""
        while sum(map(len, self._left)) < count:
            self._left.append(await anext(self._batches))
        table = pa.Table.from_batches(self._left)
        self._left = table.slice(count).to_batches()
        return table.slice(0, count)


def _failed(sink: TableSink) -> list[_Failed]:
    """Of all shards that have such rows."""
    found: list[_Failed] = []
    start = 0
    for shard in range(sink.shards):
        rows, ids = 0, dict[int, str]()
        for table in sink.read(shard, ["id", "error"]):
            places = np.flatnonzero(table["error"].is_valid().to_numpy())
            ids.update(zip((places + rows).tolist(), table["id"].take(places).to_pylist(), strict=True))
            rows += len(table)
        if ids:
            found.append(_Failed(shard, rows, start, ids))
        start += rows
    return found


def _wanted(failed: Sequence[_Failed], inputs: Inputs) -> Iterator[Row]:
    """The items of these rows, in order."""
    for shard in failed:
        first, last = min(shard.ids), max(shard.ids)
        found = 0
        for place, row in enumerate(islice(inputs.rows(shard.start + first), last - first + 1), first):
            if place not in shard.ids:
                continue
            now = (row if isinstance(row, Item) else row.item).id
            if now != shard.ids[place]:
                raise BulkError(
                    f"Item {shard.start + place} was {shard.ids[place]}, and is {now}: the inputs are others now."
                )
            found += 1
            yield row
        if found < len(shard.ids):
            raise BulkError(f"The inputs end before item {shard.start + last}: they are others now.")


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
