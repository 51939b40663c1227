"""Parquet: one file, or a folder of them. Every item has a row."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.errors import BulkError
from service.bulk.resume import Manifest
from service.bulk.rows import Rows
from service.bulk.sinks.folder import Folder
from service.bulk.sinks.one_file import OneFile
from service.bulk.sinks.sink import KEY, Counts, File, counted, described


class ParquetFile(OneFile):
    """Columns id, error, grid_rows, grid_cols, the carried ones, tokens (list of lists), pooled (list)."""

    @property
    def ledger(self) -> Path | None:
        """None: they have a row."""
        return None

    def _of_result(self) -> Manifest | None:
        if not self.out.exists():
            return None
        about = _metadata(self.out)
        if KEY not in about:
            raise BulkError(f"{self.out} exists already: --restart writes it anew.")
        return Manifest.of_json(about[KEY])

    def whole(self, rows: int) -> Counts:
        """Of the result."""
        return _counts(self.out)

    @property
    def shards(self) -> int:
        """One, if it is there."""
        return int(self.out.exists())

    def read(self, number: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """As TableSink.read."""
        return _read(self.out, columns)

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield self.out, partial(_write_parquet, rows=rows, manifest=manifest.ended(rows=rows.total))


class ParquetFolder(Folder):
    """OUT/part-00000.parquet and so on, each as ParquetFile has it."""

    _patterns: ClassVar = ("part-[0-9]*.parquet",)

    @property
    def ledger(self) -> Path | None:
        """None: they have a row."""
        return None

    def finished(self, number: int) -> Counts | None:
        """As Sink.finished."""
        path = self._shard(number)
        return _counts(path) if path.exists() else None

    @property
    def shards(self) -> int:
        """The files that are there without a gap."""
        return next(number for number in count() if not self._shard(number).exists())

    def read(self, number: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """As TableSink.read."""
        return _read(self._shard(number), columns)

    def _shard(self, number: int) -> Path:
        return self.out / f"part-{number:05d}.parquet"

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield self._shard(number), partial(_write_parquet, rows=rows, manifest=None)


def _read(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a Parquet file of ours, a group at a time. columns: all if None. Raises BulkError."""
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns)
    except (pa.ArrowException, OSError) as error:
        raise BulkError(f"{path} is damaged, or no Parquet: --restart writes the result anew.") from error


def _counts(path: Path) -> Counts:
    """Of a Parquet file of ours. Raises BulkError if it is another's."""
    try:
        return counted(_read(path, ["error"]))
    except KeyError as error:
        raise BulkError(f"{path} is of another program: move it away, or choose another folder.") from error


def _metadata(path: Path) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid as error:
        raise BulkError(f"{path} exists already, and is no Parquet: --restart writes it anew.") from error


def _write_parquet(path: Path, *, rows: Rows, manifest: Manifest | None) -> None:
    schema = rows.columns.schema.with_metadata(described(rows, manifest))
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=rows.columns.plain) as writer:
        for group in rows.groups():
            writer.write_table(group.cast(schema), row_group_size=len(group))
