"""What a sink is: it says how a result lies on disk, and each file is put in place whole.

A shard may be of several files: then the last to be put in place says that it is there.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import pyarrow as pa

from service.bulk.resume import Manifest, write_whole
from service.bulk.rows import Rows

File: TypeAlias = tuple[Path, Callable[[Path], object] | None]
"""A file of a shard and what fills it; None: it is not there."""
KEY = b"visiontower"
"""The key of a table's metadata that has the manifest of a whole result."""


@dataclass(frozen=True)
class Counts:
    """The rows of a finished shard, and how many of them have no arrays."""

    rows: int
    failed: int


class Sink(Protocol):
    """Where a result goes.

    out: as it was asked for. work: the folder of what is unfinished. is_sharded: the result is shards of some rows;
    else it is one, without end. ledger: where items that failed stand, if the result has no row for them.
    most_ids: bytes that all ids may have, in JSON.
    """

    out: Path
    is_sharded: ClassVar[bool]
    most_ids: ClassVar[int | None]

    @property
    def ledger(self) -> Path | None:
        """Where items that failed stand; None if they have a row."""

    @property
    def work(self) -> Path:
        """The folder of what is unfinished."""

    def require(self, arrays: Sequence[str]) -> None:
        """Raises BulkError if it cannot hold these arrays."""

    def recorded(self) -> Manifest | None:
        """The run that has begun to write here, or has ended; None if there was none.

        Raises BulkError if something else is here.
        """

    def require_ours(self) -> None:
        """Raises BulkError if something is here that `clear` would have to remove, and no run of ours wrote."""

    def record(self, manifest: Manifest) -> None:
        """Write down whose result it is."""

    def finished(self, number: int) -> Counts | None:
        """Of the shard of this number; None if it is not there whole. One file is written at the end, so never."""

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """What the shard is made of, the last file last."""

    def clear(self) -> None:
        """Remove all that earlier runs wrote, the last shard first, so that a run killed here still knows its own."""


@runtime_checkable
class TableSink(Sink, Protocol):
    """A sink with a row for every item, failed ones too, that can be read again."""

    @property
    def shards(self) -> int:
        """How many are there."""

    def read(self, number: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a shard in order, some MiB at a time. columns: all if None."""


def counted(tables: Iterable[pa.Table]) -> Counts:
    """The rows of a shard, from its column `error`."""
    errors = [table["error"] for table in tables]
    return Counts(sum(map(len, errors)), sum(len(each) - each.null_count for each in errors))


def described(rows: Rows, manifest: Manifest | None) -> dict[str, str]:
    """What the metadata of a table say: the run's parameters; of a whole result, also its manifest."""
    about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in rows.about.items()}
    return about if manifest is None else {**about, KEY.decode(): manifest.to_json()}


def write(sink: Sink, number: int, rows: Rows, manifest: Manifest) -> None:
    """Put a shard in place. Raises BulkError if there is no room."""
    for path, fill in sink.files(number, rows, manifest):
        if fill is None:
            path.unlink(missing_ok=True)
        else:
            write_whole(path, fill, folder=sink.work)
