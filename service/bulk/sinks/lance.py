"""Lance: a dataset, which is a folder of the library's own. Every item has a row."""

import errno
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from service.bulk import lance
from service.bulk.errors import BulkError
from service.bulk.resume import Manifest
from service.bulk.rows import Rows
from service.bulk.sinks.one_file import OneFile
from service.bulk.sinks.sink import KEY, Counts, File, counted, described

_BATCH_BYTES = 64 * 1024 * 1024


class LanceDataset(OneFile):
    """The columns of ParquetFile. Read and written whole, as if it were one file."""

    @property
    def ledger(self) -> Path | None:
        """None: they have a row."""
        return None

    def require(self, arrays: Sequence[str]) -> None:
        """As Sink.require. The library must be there."""
        lance.library()

    def require_ours(self) -> None:
        """As Sink.require_ours."""
        if self.out.exists() and KEY not in self._metadata():
            raise BulkError(f"{self.out} is of another program: choose another name.")

    def _of_result(self) -> Manifest | None:
        if not self.out.exists():
            return None
        about = self._metadata()
        if KEY not in about:
            raise BulkError(f"{self.out} exists already, and is of another program: choose another name.")
        return Manifest.of_json(about[KEY])

    def _metadata(self) -> dict[bytes, bytes]:
        try:
            return lance.opened(self.out).schema.metadata or {}
        except (ValueError, OSError):
            return {}

    def whole(self, rows: int) -> Counts:
        """Of the result."""
        return counted(self.read(0, ["error"]))

    @property
    def shards(self) -> int:
        """One, if it is there."""
        return int(self.out.exists())

    def read(self, number: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """As TableSink.read."""
        wanted = None if columns is None else list(columns)
        for batch in lance.opened(self.out).to_batches(columns=wanted, batch_size_bytes=_BATCH_BYTES):
            yield pa.Table.from_batches([batch])

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield self.out, partial(_write, rows=rows, manifest=manifest.ended(rows=rows.total))


def _write(path: Path, *, rows: Rows, manifest: Manifest) -> None:
    schema = rows.columns.schema.with_metadata(described(rows, manifest))
    batches = (batch for group in rows.groups() for batch in group.cast(schema).to_batches())
    try:
        lance.library().write_dataset(batches, path, schema)
    except OSError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # the system's, which the library has as text alone
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error
    _require_whole(path)


def _require_whole(path: Path) -> None:
    """The library says nothing if the disk is full at the last bytes of a file. Raises OSError then."""
    for fragment in lance.opened(path).get_fragments():
        for file in fragment.data_files():
            if (path / "data" / file.path).stat().st_size != file.file_size_bytes:
                raise OSError(errno.ENOSPC, f"{file.path} is cut short")
