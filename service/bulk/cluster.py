"""A bulk run on a cluster: Ray Data hands the items to engines in actors, and keeps the rows in order.

    this process            the names of the inputs; the rows into the result, as ever
    a task, once            reads rows of the inputs in order: of tables and tars with their images
    actors                  fetch what is on servers, decode, and run the encoder

A group of batches is the unit of work. It is pickled, and its rows come back as Arrow IPC has them, with an error in
place of what could not be had: Ray would take an exception for the end of everything.
"""

import asyncio
import io
import logging
import os
import pickle
import threading
import warnings
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from encoders.contract.errors import VisiontowerError
from service.bulk.embedder import Described, Reading
from service.bulk.errors import BulkError
from service.bulk.items import Item, Row
from service.bulk.reading import broken_off, on_a_thread
from service.bulk.rows import Columns
from service.cluster.join import work_in
from service.cluster.share import Share
from service.engine.values import EmbedRequest
from service.settings import Settings

R = TypeVar("R")
_GROUP_BATCHES, _GROUP_BYTES = 8, 32 * 1024 * 1024
"""A group ends at the first of these: one costs the cluster some milliseconds, and is done again if its engine ends."""
_LONGEST_ERROR = 500
_GROUPS_AT_ONCE = 2
"""In one engine: while the last batches of one are in work, those of the next are being read."""


class ClusterEmbedder:
    """The embedder of a cluster that this process has joined. engines: how many actors, each with a share."""

    def __init__(self, settings: Settings, share: Share, *, engines: int) -> None:
        self._settings = settings
        self._share = share
        self._engines = engines
        self._folder = os.getcwd()

    async def described(self, request: EmbedRequest, carried: pa.Schema) -> Described:
        """As Embedder, by an engine somewhere in the cluster."""
        # a process that ends with the task gives its card back
        task = ray.remote(num_cpus=self._share.cpus, num_gpus=self._share.gpus, max_calls=1)(_described)
        with _told():
            found: Described | str = await task.remote(self._settings, self._share, self._folder, request, carried)
        if isinstance(found, str):
            raise BulkError(found)
        return replace(found, columns=replace(found.columns, carried=carried))  # see `unpacked`

    async def batches(
        self, reading: Reading, request: EmbedRequest, columns: Columns, *, batch_size: int
    ) -> AsyncGenerator[pa.RecordBatch]:
        """As Embedder; all errors are BulkErrors. Other engines do the work of one that ends."""
        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"ray\.data")  # that a small run does not need all engines
        rows = ray.data.read_datasource(_Groups(reading, self._folder, batch_size), num_cpus=0).map_batches(
            _Engine,
            fn_constructor_args=(self._settings, self._share, self._folder, request, columns, batch_size),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=self._share.cpus,
            num_gpus=self._share.gpus,
            compute=ActorPoolStrategy(
                size=self._engines,
                max_tasks_in_flight_per_actor=2 * _GROUPS_AT_ONCE,
                max_concurrent_calls_per_actor=_GROUPS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
        )
        groups = iter(rows.iter_batches(batch_size=None, batch_format="pyarrow"))
        try:
            while True:
                with _told():
                    table = await on_a_thread(partial(next, groups, None))
                if table is None:
                    return
                for group in table.to_pylist():
                    for batch in unpacked(group["rows"], columns.schema):
                        yield batch
                    if group["error"] is not None:
                        raise BulkError(group["error"])
        finally:
            with suppress(ValueError):  # a thread waits for its next group; it ends with the cluster
                groups.close()


@contextmanager
def _told() -> Iterator[None]:
    """What happens to the cluster in the block, as a BulkError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        words = " ".join(str(cause).split())[:_LONGEST_ERROR] or type(cause).__name__
        raise BulkError(
            f"The cluster could not do the work: {words} What is done is kept; the same command continues."
        ) from error


class _Groups(Datasource):  # type: ignore[misc]  # Ray's types are not read
    """Groups of rows, each pickled."""

    def __init__(self, reading: Reading, folder: str, batch_size: int) -> None:
        self._reading = ray.put(reading)  # it may hold millions of names, too many for a task's arguments
        self._folder = folder
        self._batch_size = batch_size

    def estimate_inmemory_data_size(self) -> int | None:
        """As Datasource: not known."""
        return None

    def get_read_tasks(self, parallelism: int, *arguments: object, **options: object) -> list[Any]:
        """As Datasource. One task: the rows have one order, and what is on servers is fetched elsewhere."""
        about = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(_read, self._reading, self._folder, self._batch_size), about)]


def _read(reading: Any, folder: str, batch_size: int) -> Iterator[pa.Table]:
    """In a task: each group as a block."""
    work_in(folder)
    for group in groups(ray.get(reading)(), batch_size=batch_size):
        yield pa.table({"group": [pickle.dumps(group)]})


def groups(rows: Iterator[Row], *, batch_size: int) -> Iterator[tuple[Sequence[Row], str | None]]:
    """Whole batches of rows, at the end what is left.

    If the inputs end before their time, the last group says why. What would be no whole batch is not in it: the run
    that continues begins with a batch of the same rows.
    """
    error: str | None = None
    while error is None:
        group: list[Row] = []
        size = 0
        try:
            for row in islice(rows, batch_size * _GROUP_BATCHES):
                group.append(row)
                size += _bytes(row)
                if size >= _GROUP_BYTES and len(group) % batch_size == 0:
                    break
        except (BulkError, OSError) as broken:
            error = str(broken_off(broken))
            del group[len(group) - len(group) % batch_size :]
        if group or error is not None:
            yield group, error
        else:
            return


def unpacked(rows: bytes, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of a group. Some types lose the names of their parts when they are pickled; here they have them."""
    return (batch.cast(schema) for batch in pa.ipc.open_stream(rows))


def _bytes(row: Row) -> int:
    return len(row.source) if isinstance(row, Item) and isinstance(row.source, bytes) else 0


class _Engine:
    """An engine in an actor."""

    def __init__(
        self, settings: Settings, share: Share, folder: str, request: EmbedRequest, columns: Columns, batch_size: int
    ) -> None:
        work_in(folder)
        self._request, self._columns, self._batch_size = request, columns, batch_size
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        self._embedder = self._result(self._started(share.settings(settings)))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of a group's items."""
        (pickled,) = table["group"].to_pylist()
        rows, error = self._result(self._embedded(*pickle.loads(pickled)))
        return pa.table({"rows": pa.array([rows], pa.large_binary()), "error": pa.array([error], pa.string())})

    async def _started(self, settings: Settings) -> Any:
        from service.bulk.embedding import EngineEmbedder
        from service.engine.engine import Engine

        return EngineEmbedder(await Engine(settings).__aenter__())

    async def _embedded(self, group: Sequence[Row], error: str | None) -> tuple[bytes, str | None]:
        stream = io.BytesIO()
        with pa.ipc.new_stream(stream, self._columns.schema) as writer:
            try:
                batches = self._embedder.batches(
                    partial(iter, group), self._request, self._columns, batch_size=self._batch_size
                )
                async for batch in batches:
                    writer.write_batch(batch)
            except (BulkError, VisiontowerError) as failed:
                error = str(failed)
        return stream.getvalue(), error

    def _result(self, work: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _described(
    settings: Settings, share: Share, folder: str, request: EmbedRequest, carried: pa.Schema
) -> Described | str:
    """In a task; an error as its sentence."""
    work_in(folder)
    settings = share.settings(settings)
    from service.bulk.embedding import EngineEmbedder
    from service.engine.engine import Engine

    async def described() -> Described:
        async with Engine(settings) as engine:
            return await EngineEmbedder(engine).described(request, carried)

    try:
        return asyncio.run(described())
    except (BulkError, VisiontowerError) as error:
        return str(error)
