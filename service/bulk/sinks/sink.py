"""What a sink is: it says how a result lies on disk, and each file is put in place whole.

A shard may be of several files: then the last to be put in place says that it is there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

from service.bulk.resume import Manifest, write_whole
from service.bulk.rows import Rows

File: TypeAlias = tuple[Path, Callable[[Path], object] | None]
"""A file of a shard and what fills it; None: it is not there."""


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


def write(sink: Sink, number: int, rows: Rows, manifest: Manifest) -> None:
    """Put a shard in place. Raises BulkError if there is no room."""
    for path, fill in sink.files(number, rows, manifest):
        if fill is None:
            path.unlink(missing_ok=True)
        else:
            write_whole(path, fill, folder=sink.work)
