"""Tables: Parquet, Arrow (IPC files and streams, Feather) and CSV. A row is an item."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError
from service.bulk.items import Cell, Item, Modality, Row
from service.bulk.sources import csvs
from service.bulk.sources.columns import (
    carried,
    common_schema,
    common_type,
    embedded,
    field_of,
    id_column,
    id_in,
    image_columns,
    legible,
    text_column,
)
from service.bulk.sources.options import Options
from service.bulk.sources.place import Skip, shown
from service.bulk.sources.places import Places, Remote, row, scheme_of
from service.engine.values import ImageUrl, Source

SUFFIXES = frozenset({".parquet", ".arrow", ".arrows", ".feather", ".ipc"}) | csvs.SUFFIXES
_BATCH_ROWS = 64
"""Rows in memory at a time, where the format lets one choose."""
_THREADS = 16


def is_table(name: str) -> bool:
    """By its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


@dataclass(frozen=True)
class _Shard:
    """One file. groups: rows of each row group; None if they are not known before they are read."""

    name: str
    schema: pa.Schema
    groups: Sequence[int] | None


class Tables:
    """The rows of tables that have the same columns, in order.

    Raises BulkError if the columns asked for are not there, or it is not clear which one holds the images.
    """

    def __init__(self, names: Sequence[str], places: Places, options: Options) -> None:
        self._places = places
        self.files = names
        with ThreadPoolExecutor(_THREADS) as pool:  # a footer is a few bytes, and a bucket far away
            self._shards = list(pool.map(self._shard, names))
        schema = common_schema([shard.schema for shard in self._shards])
        self._image, self._text = embedded(names[0], schema, options)
        self.modality: Modality = "image" if self._text is None else "text"
        self._id = options.id
        self._trust_paths = options.trust_paths
        self.columns = pa.schema([field_of(names[0], schema, name) for name in options.carried])
        used = (self._image, self._text, self._id, *options.carried)
        self._used = list(dict.fromkeys(name for name in used if name is not None))
        for shard in self._shards:
            for name in self._used:
                here, there = field_of(shard.name, shard.schema, name).type, field_of(names[0], schema, name).type
                if common_type(here, there) is None:
                    raise BulkError(
                        f"{shown(shard.name)}: column {name} is {here}; in {shown(names[0])} it is {there}."
                    )
        known = [shard.groups for shard in self._shards if shard.groups is not None]
        self.total = sum(map(sum, known)) if len(known) == len(self._shards) else None

    def parameters(self) -> Mapping[str, Any]:
        """The files with their sizes and times, and the columns."""
        return {
            "kind": "tables",
            "count": self.total,
            "files": {shown(each.name): self._places.of(each.name).stamp(each.name) for each in self._shards},
            "image": self._image,
            "text": self._text,
            "id": self._id,
            "columns": list(self.columns.names),
        }

    def rows(self, skip: Skip) -> Iterator[Row]:
        """Row groups before the start are not read."""
        for shard in self._shards:
            for first, batch in self._batches(shard, skip):
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from self._rows(shard.name, first + start, batch.slice(start, _BATCH_ROWS))

    def _rows(self, file: str, first: int, batch: pa.RecordBatch) -> Iterator[Row]:
        """Few rows, so that a value that is carried keeps few others in memory."""
        columns = {field.name: carried(batch.column(field.name), field.type) for field in self.columns}
        ids = None if self._id is None else id_column(batch.column(self._id))
        texts = None if self._text is None else text_column(batch.column(self._text))
        images, paths = (None, None) if self._image is None else image_columns(batch.column(self._image))
        for index in range(batch.num_rows):
            cells = {name: Cell(column, index) for name, column in columns.items()}
            path = None if paths is None else paths[index].as_py()
            given = "" if ids is None else id_in(ids, index)
            name = given or legible(path or b"") or f"{shown(file)}#{first + index}"
            if texts is not None:
                yield self._text_item(name, texts[index].as_py(), cells)
            else:
                image = None if images is None else images[index].as_py()
                yield row(name, self._source(file, path) if image is None else image, cells)

    def _text_item(self, name: str, text: bytes | None, cells: Mapping[str, Cell]) -> Item:
        if text is None:
            return Item(name, ImageError(f"There is no text: column {self._text} is null."), columns=cells)
        try:
            return Item(name, text=text.decode(), columns=cells)
        except UnicodeDecodeError:
            return Item(name, ImageError(f"The text in column {self._text} is not UTF-8."), columns=cells)

    def _source(self, file: str, path: bytes | None) -> Source | Remote:
        if not path:
            return ImageError(f"There is no image: column {self._image} is {'null' if path is None else 'empty'}.")
        try:
            return self._named_file(file, path.decode())
        except UnicodeDecodeError:
            return ImageError(f"The path in column {self._image} is not UTF-8: '{legible(path)[:200]}'.")

    def _named_file(self, file: str, path: str) -> Source | Remote:
        """The image that a table names. Who wrote the table may be a stranger, so it decides on little.

        Web URLs are fetched by the engine, under its setting image_url_hosts; paths stay below the table's folder.
        """
        scheme = scheme_of(path)
        if scheme in ("http", "https"):
            return ImageUrl(path)
        if self._trust_paths and (scheme or os.path.isabs(path)):
            return self._places.source(path)
        place = self._places.of(file)
        if scheme or (joined := place.join(file, path)) is None:
            if not self._trust_paths:
                return ImageError(f"'{shown(path)[:200]}' is outside the table's folder (--trust-paths allows it).")
            joined = os.path.join(os.path.dirname(file), path)
        return self._places.source(joined)

    def _shard(self, name: str) -> _Shard:
        with self._opened(name) as file:
            if _suffix(name) == ".parquet":
                about = pa.parquet.ParquetFile(file)
                groups = [about.metadata.row_group(index).num_rows for index in range(about.num_row_groups)]
                return _Shard(name, about.schema_arrow, groups)
            schema = csvs.schema_of(name, file) if _suffix(name) in csvs.SUFFIXES else _reader(file).schema
            return _Shard(name, schema, None)

    def _batches(self, shard: _Shard, skip: Skip) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches, each with the number of its first row in the file."""
        if shard.groups is not None and skip.whole(sum(shard.groups)):
            return
        with self._opened(shard.name) as file:
            first = 0
            for batch in self._whole_batches(shard, file, skip):
                if isinstance(batch, int):
                    first += batch
                elif skip.whole(batch.num_rows):
                    first += batch.num_rows
                else:
                    left_out = skip.part()
                    yield first + left_out, batch.slice(left_out)
                    first += batch.num_rows

    def _whole_batches(self, shard: _Shard, file: BinaryIO, skip: Skip) -> Iterator[pa.RecordBatch | int]:
        """Batches, or the number of rows that were left out altogether."""
        if _suffix(shard.name) in csvs.SUFFIXES:
            yield from csvs.batches_of(shard.name, file, rows=_BATCH_ROWS)
            return
        if shard.groups is None:
            reader = _reader(file)
            yield from (
                (reader.get_batch(index) for index in range(reader.num_record_batches))
                if isinstance(reader, pa.ipc.RecordBatchFileReader)
                else reader
            )
            return
        table = pa.parquet.ParquetFile(file)
        for group, rows in enumerate(shard.groups):
            if skip.whole(rows):
                yield rows
            else:
                yield from table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=self._used)

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """The file. What is wrong with it as a table is a BulkError."""
        try:
            with self._places.of(name).open(name) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise BulkError(
                f"{shown(name)} cannot be read as a table: {shown(str(error))[:300].rstrip('.')}."
            ) from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _reader(file: BinaryIO) -> Any:
    """Of one of Arrow's two formats: has a schema and batches."""
    magic = file.read(6)
    file.seek(0)
    return pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)
