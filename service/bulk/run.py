"""A bulk run: items through the engine, in order, into parts, shards and the whole result; resumable."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from service.bulk.embedder import Described, Embedder
from service.bulk.errors import BulkError
from service.bulk.items import Inputs
from service.bulk.resume import Manifest, forget, held
from service.bulk.retry import retry
from service.bulk.room import Room
from service.bulk.rows import Columns, failures_of
from service.bulk.sinks import Layout, Sink, TableSink, shard_rows, sink_of
from service.bulk.writing import Writing
from service.engine.values import EmbedRequest

SHOWN_FAILURES = 20
"""Of the items that failed, so many are named; the result has all."""


@dataclass(frozen=True)
class Job:
    """The inputs, how to encode them and where to write.

    request: its sources and texts are left out. is_folder: `out` is one whatever its name. shard_rows: of a folder;
    None for about 256 MiB. restart: drop what an earlier run left. retry_errors: then embed what failed once more.
    """

    out: Path
    inputs: Inputs
    request: EmbedRequest
    batch_size: int = 32
    layout: Layout = "auto"
    is_folder: bool = False
    shard_rows: int | None = None
    restart: bool = False
    retry_errors: bool = False

    @property
    def arrays(self) -> list[str]:
        """The arrays that are written."""
        return ["tokens", "pooled"] if self.request.output == "both" else [self.request.output]

    def sink(self) -> Sink:
        """Where it goes. Raises BulkError if that cannot be."""
        if self.request.output == "tokens" and "text" in self.inputs.modalities:
            raise BulkError("A text has no tokens here: choose --output pooled or both.")
        out = os.path.realpath(self.out)
        for name in self.inputs.files:
            if f"{os.path.realpath(name)}/".startswith(f"{out}/"):
                raise BulkError(f"{self.out} would take the place of {name}, which is read: choose another name.")
        sink = sink_of(
            self.out,
            layout=self.layout,
            arrays=self.arrays,
            carried=self.inputs.columns.names,
            modalities=self.inputs.modalities,
            is_folder=self.is_folder,
        )
        if self.retry_errors and not isinstance(sink, TableSink):
            raise BulkError(
                "--retry-errors is for results with a row for each failure: .parquet, a folder of them, or .lance."
            )
        if self.shard_rows and not sink.is_sharded:
            raise BulkError(f"{self.out} is one file: --shard-rows is for a folder.")
        return sink


@dataclass(frozen=True)
class Progress:
    """done: items that are in the result or in a part; failed: those of them that gave nothing."""

    done: int
    failed: int


@dataclass(frozen=True)
class Finished:
    """A run's end.

    rows: items. failed: those of them that gave nothing. resumed: those that earlier runs had done. failures: ids and
    errors of the first that failed in this run. ledger: the file of all failures, if the result has no place for them.
    shapes: of each array of a row.
    """

    rows: int
    failed: int
    resumed: int
    failures: Sequence[tuple[str, str]]
    ledger: Path | None
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def good(self) -> int:
        """Items that gave something."""
        return self.rows - self.failed


async def run(
    job: Job,
    embedder: Embedder,
    *,
    progress: Callable[[Progress], None] = lambda progress: None,
    warn: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Finished:
    """Embed the items that no earlier run has done, and put the result in place.

    progress: called first with what was there already. warn: told, before the work begins, of a result that is large or
    has no room on the disk. Whatever ends the run early, a cancellation included, the finished batches are on disk.

    Raises BulkError, RequestError if the encoder does not offer what the request asks for, or EncoderFailed if it fails
    on a batch and on each of its items.
    """
    sink = job.sink()
    described = await embedder.described(job.request, job.inputs.columns)
    columns = described.columns
    parameters = _parameters(job, described)
    of_inputs = {f"inputs {name}": value for name, value in job.inputs.parameters().items()}
    begun = Manifest({**parameters, "layout": job.layout, **of_inputs}, shard_rows=_shard_rows(job, sink, columns))
    _before(job, sink, begun)  # refuses before a folder is made
    with held(sink.work):
        manifest = _before(job, sink, begun)
        if manifest is None:
            sink.clear()
            sink.record(begun)
            room = Room.of(job.out, job.inputs.total, columns.row_bytes, is_sharded=sink.is_sharded)
            if room.warning:
                warn(room.warning)
        about, expected = {**parameters, **described.arrays}, job.inputs.total
        writing = Writing(sink, columns, about, manifest or begun, expected=expected, clock=clock)
        finished = await _embed_rest(job, embedder, writing, progress)
        if job.retry_errors and finished.failed:
            failures = await retry(writing, job.inputs, job.request, embedder, batch_size=job.batch_size)
            finished = replace(finished, failed=len(failures), failures=failures[:SHOWN_FAILURES])
        forget(sink.work)
    return finished


def _before(job: Job, sink: Sink, begun: Manifest) -> Manifest | None:
    """The run that this one continues, or None if it begins. Raises BulkError if it can do neither."""
    if job.restart:
        sink.require_ours()
        return None
    before = sink.recorded()
    if before is None:
        return None
    if job.shard_rows is None:
        begun = replace(begun, shard_rows=before.shard_rows)
    changes = before.changes(begun)
    if changes:
        raise BulkError(
            f"{job.out} belongs to a run with other parameters: {'; '.join(changes)}. "
            "Give the same ones to continue it, or use --restart to begin anew."
        )
    if before.rows is not None and not sink.is_sharded and not sink.work.exists() and not job.retry_errors:
        raise BulkError(f"{job.out} exists already: --restart writes it anew.")
    return before


async def _embed_rest(job: Job, embedder: Embedder, writing: Writing, progress: Callable[[Progress], None]) -> Finished:
    resumed = writing.stop
    failures: list[tuple[str, str]] = []
    progress(Progress(writing.stop, writing.failed))
    if not writing.has_ended:
        try:
            rest = partial(job.inputs.rows, writing.stop)
            ready = embedder.batches(rest, job.request, writing.columns, batch_size=job.batch_size)
            async with aclosing(ready):
                async for rows in ready:
                    failures += failures_of(rows)[: SHOWN_FAILURES - len(failures)]
                    await writing.add(rows)
                    progress(Progress(writing.stop, writing.failed))
            await writing.end()
        finally:
            writing.close()
    ledger = writing.sink.ledger
    return Finished(
        rows=writing.stop,
        failed=writing.failed,
        resumed=resumed,
        failures=failures,
        ledger=ledger if ledger is not None and ledger.exists() else None,
        shapes=writing.columns.shapes,
    )


def _shard_rows(job: Job, sink: Sink, columns: Columns) -> int:
    """0 for one file."""
    if not sink.is_sharded:
        return 0
    if job.shard_rows is None:
        return shard_rows(columns.row_bytes, batch_size=job.batch_size)
    return -(-job.shard_rows // job.batch_size) * job.batch_size


def _parameters(job: Job, described: Described) -> dict[str, object]:
    """All that the numbers depend on, apart from the inputs; the batch size too, in the last digits."""
    request, spec = job.request, described.spec
    asked = {name: getattr(request, name) for name in ("output", "layer", "prefix", "project", "normalize", "dtype")}
    return {
        "model": spec.id,
        "revision": spec.revision,
        "device": spec.device,
        "compute_dtype": spec.dtype,
        "runtime": spec.runtime,
        "exact_pixels": described.exact_pixels,
        "resolution": str(spec.size(request.resolution)),
        **asked,
        "batch_size": job.batch_size,
    }
