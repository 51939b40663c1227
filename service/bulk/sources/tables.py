"""Tables: Parquet, Arrow (IPC files and streams, Feather) and CSV. A row is an item."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError
from service.bulk.items import Item, Modality, Row
from service.bulk.sources.options import Options
from service.bulk.sources.place import Skip, shown
from service.bulk.sources.places import Places, Remote, row, scheme_of
from service.engine.values import ImageUrl, Source

SUFFIXES = frozenset({".parquet", ".arrow", ".arrows", ".feather", ".ipc", ".csv", ".tsv"})
_USUAL = ("image", "img", "image_path", "img_path", "file_path", "filepath", "file_name", "filename", "file", "path",
          "image_url", "img_url", "url")  # fmt: skip
"""Columns of text that hold paths or URLs, in small letters."""
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
        with ThreadPoolExecutor(_THREADS) as pool:  # a footer is a few bytes, and a bucket far away
            self._shards = list(pool.map(self._shard, names))
        schema = self._shards[0].schema
        self._image, self._text = _embedded(names[0], schema, options)
        self.modality: Modality = "image" if self._text is None else "text"
        self._id = options.id
        self._trust_paths = options.trust_paths
        carried = [pa.field(name, _field(names[0], schema, name).type) for name in options.carried]
        self.columns = pa.schema(carried)
        self._used = list(dict.fromkeys(filter(None, [self._image, self._text, self._id, *options.carried])))
        for name in self._used:
            _field(names[0], schema, name)
        for shard in self._shards[1:]:
            for name in self._used:
                here, there = _field(shard.name, shard.schema, name).type, schema.field(name).type
                if here != there:
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
                columns = {name: batch.column(batch.schema.get_field_index(name)) for name in self._used}
                for index in range(batch.num_rows):
                    values = {name: column[index].as_py() for name, column in columns.items()}
                    yield self._row(shard.name, first + index, values)

    def _row(self, file: str, number: int, values: Mapping[str, Any]) -> Row:
        carried = {name: values[name] for name in self.columns.names}
        name = None if self._id is None else values[self._id]
        if self._text is not None:
            name, text = _named(name, None, file, number), values[self._text]
            if text is None:
                return Item(name, ImageError(f"There is no text: column {self._text} is null."), columns=carried)
            return Item(name, text=text, columns=carried)
        assert self._image is not None, "_embedded gives one of the two"
        value = values[self._image]
        path = value if isinstance(value, str) else value.get("path") if isinstance(value, dict) else None
        return row(_named(name, path, file, number), self._source(file, value), carried)

    def _source(self, file: str, value: object) -> Source | Remote:
        if isinstance(value, dict):  # as the library `datasets` writes images: struct<bytes, path>
            value = value["path"] if value["bytes"] is None else value["bytes"]
        if value is None:
            return ImageError(f"There is no image: column {self._image} is null.")
        return bytes(value) if isinstance(value, bytes | bytearray) else self._named_file(file, str(value))

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
            return _Shard(name, _reader(name, file).schema, None)

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
        if shard.groups is None:
            reader = _reader(shard.name, file)
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


def _reader(name: str, file: BinaryIO) -> Any:
    """Of Arrow's two formats, or of CSV: has a schema and batches."""
    suffix = _suffix(name)
    if suffix in (".csv", ".tsv"):
        options = pa.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)
        return pa.csv.open_csv(file, parse_options=options)
    magic = file.read(6)
    file.seek(0)
    return pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)


def _field(name: str, schema: pa.Schema, column: str) -> pa.Field:
    if schema.get_field_index(column) < 0:
        raise BulkError(f"{shown(name)} has no column {column}, or two. It has {_listed(schema)}.")
    return schema.field(column)


def _embedded(name: str, schema: pa.Schema, options: Options) -> tuple[str | None, str | None]:
    """The columns of images and of texts: one of the two."""
    if options.image and options.text:
        raise BulkError("--image-column and --text-column: a row is an image or a text. Give one of them.")
    if options.text:
        if not _is_text(_field(name, schema, options.text).type):
            raise BulkError(f"{shown(name)}: column {options.text} is {schema.field(options.text).type}, no text.")
        return None, options.text
    if options.image:
        kind = _field(name, schema, options.image).type
        if not (_is_bytes(kind) or _is_text(kind)):
            raise BulkError(f"{shown(name)}: column {options.image} is {kind}: neither bytes, nor paths or URLs.")
        return options.image, None
    bytes_ = [field.name for field in schema if _is_bytes(field.type)]
    named = [field.name for field in schema if _is_text(field.type) and field.name.lower() in _USUAL]
    found = bytes_ or named
    if len(found) != 1:
        what = (
            f"{len(found)} columns of {shown(name)} may hold the images"
            if found
            else f"No column of {shown(name)} looks like images"
        )
        raise BulkError(f"{what}: name one with --image-column, or --text-column. There are {_listed(schema)}.")
    return found[0], None


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "no columns"


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = {kind.field(index).name for index in range(kind.num_fields)}
        return {"bytes", "path"} <= names and _is_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _named(given: object, path: str | None, file: str, number: int) -> str:
    """A row's id: of its column, else the image's path, else the file and the number of the row, from 0."""
    if given is not None:
        return given.decode("utf-8", "backslashreplace") if isinstance(given, bytes) else str(given)
    return path or f"{shown(file)}#{number}"
