"""From batches to parts, from parts to shards; on a thread beside, one thing at a time, while the next batches come."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, count

import pyarrow as pa

from service.bulk.errors import BulkError
from service.bulk.resume import Manifest, Parts
from service.bulk.rows import Columns, Rows
from service.bulk.sinks import Counts, OneFile, Sink, write

_PART_BYTES = 64 * 1024 * 1024
_PART_SECONDS = 30.0
"""A part is written at the first of these, so a kill costs half a minute and a merge holds one part in memory."""


class Writing:
    """The result of one run as it grows: rows are in shards, then in parts, then in memory.

    about: for the metadata. manifest: of the run that began it. expected: rows that there will be, if that is known.
    stop: rows that there are. failed: those whose items failed. Raises BulkError if shards or parts are missing.
    """

    def __init__(
        self,
        sink: Sink,
        columns: Columns,
        about: Mapping[str, object],
        manifest: Manifest,
        *,
        expected: int | None,
        clock: Callable[[], float],
    ) -> None:
        self.sink = sink
        self.columns = columns
        self.about = about
        self.manifest = manifest
        self._clock = clock
        shards = list(_finished(sink, manifest))
        self._parts = Parts(sink.work, covered=sum(shard.rows for shard in shards))
        self._shard = len(shards)  # the one that is filled now
        self._start = sum(shard.rows for shard in shards)
        self.stop = self._parts.stop
        self.failed = sum(shard.failed for shard in shards) + self._parts.failed
        if self.has_ended and self.stop != manifest.rows:
            raise BulkError(
                f"{sink.out} had {manifest.rows:,} rows and has {self.stop:,}: use --restart to begin anew."
            )
        self._expected = expected
        self._ids = self._id_bytes = 0
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self._began = clock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._last: Future[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether an earlier run has put all of it in place."""
        return self.manifest.rows is not None

    async def add(self, rows: pa.RecordBatch) -> None:
        """The next rows: a batch. Raises BulkError if those before could not be written, or these have no place."""
        self._require_ids(rows["id"].to_pylist())
        if self._last is not None and self._last.done():
            self._last.result()
        if self._is_full:  # the parts of a shard were there, the shard was not
            await self._end_shard()
        self._held.append(rows)
        self._held_bytes += rows.nbytes
        self.stop += len(rows)
        self.failed += len(rows) - rows["error"].null_count
        if self._is_full:
            await self._end_shard()
        elif self._held_bytes >= _PART_BYTES or self._clock() - self._began >= _PART_SECONDS:
            await self._then(self._write_part)

    async def end(self) -> None:
        """There are no more rows: put the rest in place. Raises BulkError if there is no room."""
        if self.stop > self._start or not self.sink.is_sharded:
            await self._end_shard()
        await self._settled()
        self.manifest = self.manifest.ended(rows=self.stop)
        self.sink.record(self.manifest)

    def close(self) -> None:
        """End the thread. What is in memory goes to a part, for the run that continues. Raises BulkError."""
        self._thread.shutdown(wait=True)
        if self._held and (self._last is None or self._last.exception() is None):
            self._write_part(self._taken())

    @property
    def _is_full(self) -> bool:
        return self.stop == self._start + self.manifest.shard_rows and self.sink.is_sharded

    def _require_ids(self, ids: Sequence[str]) -> None:
        """Raises BulkError as soon as it can be told that all ids will have no place."""
        most = self.sink.most_ids
        if most is None:
            return
        self._ids += len(ids)
        self._id_bytes += sum(len(json.dumps(json.dumps(each))) for each in ids)
        total = max(self._expected or 0, self.stop + len(ids))
        if self._id_bytes / self._ids * total > most:
            raise BulkError(
                f"{self.sink.out} would need a header over {most:,} bytes for {total:,} ids, more than readers accept: "
                "write .parquet, .npy or a folder."
            )

    async def _end_shard(self) -> None:
        shard, start, stop = self._shard, self._start, self.stop
        await self._then(partial(self._write_shard, shard, start, stop))
        self._shard, self._start = shard + 1, stop

    async def _then(self, work: Callable[[list[pa.RecordBatch]], None]) -> None:
        """Do it on the thread with what is held, after what it is at."""
        await self._settled()
        self._last = self._thread.submit(work, self._taken())

    async def _settled(self) -> None:
        if self._last is not None:
            await asyncio.shield(asyncio.wrap_future(self._last))

    def _taken(self) -> list[pa.RecordBatch]:
        held, self._held, self._held_bytes, self._began = self._held, [], 0, self._clock()
        return held

    def _write_part(self, held: list[pa.RecordBatch]) -> None:
        if held:
            self._parts.write(held)

    def _write_shard(self, shard: int, start: int, stop: int, held: list[pa.RecordBatch]) -> None:
        """The rows [start, stop), the last of them the held ones."""
        self._write_part(held)
        parts = self._parts.between(start, stop)
        rows = Rows(
            self.columns,
            total=stop - start,
            failed=sum(part.failed for part in parts),
            about=self.about,
            tables=lambda: chain.from_iterable(part.tables() for part in parts),
        )
        write(self.sink, shard, rows, self.manifest)
        if self.sink.is_sharded:
            self._parts.drop(stop=stop)


def _finished(sink: Sink, manifest: Manifest) -> Iterator[Counts]:
    """The shards that are there whole."""
    if isinstance(sink, OneFile) and manifest.rows is not None:
        yield sink.whole(manifest.rows)
        return
    for number in count():
        shard = sink.finished(number)
        if shard is None:
            return
        yield shard
