"""Rows of a result as Arrow has them: an item each, good or failed, in the order of the inputs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encoders.contract.values import Grid
from service.bulk.errors import BulkError
from service.bulk.items import Cell, Item

Array: TypeAlias = NDArray[Any]
_OWN = ("id", "error", "grid_rows", "grid_cols")
_OWN_BYTES = 64
"""About what a row takes beside its arrays."""
_GROUP_BYTES = 64 * 1024 * 1024
_MOST_GROUP_ROWS = 65_536
"""A group of rows is what a reader takes at a time."""


@dataclass(frozen=True)
class Good:
    """What an item gave. grid: of an image; None of a text. arrays: by name; a text has no tokens."""

    grid: Grid | None
    arrays: Mapping[str, Array]


Outcome: TypeAlias = Good | str
"""Of an item: what it gave, or the sentence that says why it gave nothing."""


@dataclass(frozen=True)
class Columns:
    """The columns of a result: id, error, grid_rows, grid_cols, the carried ones, then the arrays.

    shapes: name -> shape of one item's array, `tokens` before `pooled`. dtype: of the arrays. Raises BulkError if a
    carried column has the name of another, or a type that cannot be written.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    carried: pa.Schema

    def __post_init__(self) -> None:
        names = [*_OWN, *self.carried.names, *self.shapes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BulkError(f"The result would have two columns {', '.join(twice)}: carry others.")
        for field in self.carried:
            _require_writable(field)

    @property
    def schema(self) -> pa.Schema:
        """Arrays are nested lists of fixed sizes; null where there is none."""
        own = [("id", pa.string()), ("error", pa.string()), ("grid_rows", pa.int32()), ("grid_cols", pa.int32())]
        arrays = [(name, _list_type(self.dtype, shape)) for name, shape in self.shapes.items()]
        return pa.schema([*own, *self.carried, *arrays])

    @property
    def plain(self) -> list[str]:
        """The columns that are no arrays."""
        return [*_OWN, *self.carried.names]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, about: what is carried is not known before."""
        numbers = sum(math.prod(shape) for shape in self.shapes.values())
        return numbers * np.dtype(self.dtype).itemsize + _OWN_BYTES

    @property
    def group_rows(self) -> int:
        """Rows that a reader should take at a time."""
        return max(1, min(_MOST_GROUP_ROWS, _GROUP_BYTES // self.row_bytes))

    def batch(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> pa.RecordBatch:
        """One row an item. Raises BulkError if a carried value is not of its column's type."""
        good = [each if isinstance(each, Good) else None for each in outcomes]
        grids = [each.grid if each else None for each in good]
        columns = [
            pa.array([item.id for item in items], pa.string()),
            pa.array([each if isinstance(each, str) else None for each in outcomes], pa.string()),
            pa.array([grid.rows if grid else None for grid in grids], pa.int32()),
            pa.array([grid.cols if grid else None for grid in grids], pa.int32()),
            *(_carried(items, field) for field in self.carried),
            *(self._lists(name, [each.arrays.get(name) if each else None for each in good]) for name in self.shapes),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _lists(self, name: str, rows: Sequence[Array | None]) -> pa.Array:
        """Rows as nested lists; what stands behind a null is zeros."""
        block = np.zeros((len(rows), *self.shapes[name]), self.dtype)
        for index, row in enumerate(rows):
            if row is None:
                continue
            if row.shape != block.shape[1:]:
                found, known = list(row.shape), list(block.shape[1:])
                raise BulkError(f"One item's {name} is {found}, the others' {known}: embed images and texts apart.")
            block[index] = row
        array = pa.array(block.reshape(-1))
        for width in reversed(block.shape[2:]):
            array = pa.FixedSizeListArray.from_arrays(array, width)
        missing = np.array([row is None for row in rows])
        mask = pa.array(missing) if missing.any() else None
        return pa.FixedSizeListArray.from_arrays(array, block.shape[1], mask=mask).cast(self.schema.field(name).type)


@dataclass(frozen=True)
class Rows:
    """What is to be written as one. tables: the rows in order, a few at a time, from the first again at each call.

    total: how many they are. failed: how many of them are of items that failed. about: the run's parameters.
    """

    columns: Columns
    total: int
    failed: int
    about: Mapping[str, object]
    tables: Callable[[], Iterable[pa.Table]]

    @property
    def good(self) -> int:
        """How many have arrays."""
        return self.total - self.failed

    def ids(self) -> Iterator[str]:
        """Of the good rows."""
        for table in self.tables():
            yield from table.filter(table["error"].is_null())["id"].to_pylist()

    def failures(self) -> Iterator[tuple[str, str]]:
        """The ids and errors of the failed rows."""
        for table in self.tables():
            yield from failures_of(table)

    def blocks(self, name: str) -> Iterator[Array]:
        """The arrays [n, ...] of this name, of the good rows. Raises BulkError if one of them has no such array."""
        for table in self.tables():
            for batch in table.to_batches():
                column = batch.filter(batch["error"].is_null())[name]
                if column.null_count:
                    raise BulkError(f"A text has no {name}: write .parquet, or choose --output pooled.")
                if len(column):
                    yield _numbers(column, self.columns.shapes[name])

    def groups(self) -> Iterator[pa.Table]:
        """Tables of `group_rows` rows and a last smaller one: where a run was interrupted must not show in its file."""
        held: pa.Table | None = None
        size = self.columns.group_rows
        for table in self.tables():
            held = table if held is None else pa.concat_tables([held, table])
            while len(held) >= size:
                yield held.slice(0, size).combine_chunks()
                held = held.slice(size)
        if held is not None and len(held):
            yield held.combine_chunks()


def failures_of(rows: pa.Table | pa.RecordBatch) -> list[tuple[str, str]]:
    """The ids and errors of the failed ones, in order."""
    failed = rows.select(["id", "error"]).filter(rows["error"].is_valid())
    return list(zip(failed["id"].to_pylist(), failed["error"].to_pylist(), strict=True))


def _carried(items: Sequence[Item], field: pa.Field) -> pa.Array:
    """Cells as they stand, those that follow each other in a column together; other values as the type has them."""
    values = [item.columns.get(field.name) for item in items]

    def kind(place: int) -> object:
        value = values[place]
        return (id(value.column), value.row - place) if isinstance(value, Cell) else value is None

    try:
        alike = [[values[place] for place in places] for _, places in groupby(range(len(values)), key=kind)]
        return pa.concat_arrays([_array(group, field.type) for group in alike] or [pa.nulls(0, field.type)])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise BulkError(f"A value of the column {field.name} is no {field.type}: {error}") from error


def _array(alike: Sequence[object], kind: pa.DataType) -> pa.Array:
    first = alike[0]
    column = first.array(len(alike)) if isinstance(first, Cell) else None
    if first is None:
        return pa.nulls(len(alike), kind)
    return pa.array(alike, kind) if column is None else column.cast(kind)


def _require_writable(field: pa.Field) -> None:
    """Raises BulkError if Parquet has no such type, or it holds dictionaries: all rows of a part would share one."""
    try:
        if _has_dictionary(field.type):
            raise pa.ArrowNotImplementedError(str(field.type))
        pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
    except pa.ArrowNotImplementedError as error:
        raise BulkError(f"Column {field.name} is {field.type}, which no result can hold: carry others.") from error


def _has_dictionary(kind: pa.DataType) -> bool:
    inside = (kind.field(index).type for index in range(kind.num_fields))
    return bool(pa.types.is_dictionary(kind)) or any(map(_has_dictionary, inside))


def _numbers(column: pa.FixedSizeListArray, shape: tuple[int, ...]) -> Array:
    """[n, ...] of lists without nulls, no copy."""
    length = len(column)
    for _ in shape:
        column = column.flatten()
    numbers: Array = column.to_numpy(zero_copy_only=False).reshape(length, *shape)
    return numbers


def _list_type(dtype: str, shape: Sequence[int]) -> pa.DataType:
    inner = pa.float16() if dtype == "float16" else pa.float32()
    for width in reversed(shape):
        inner = pa.list_(inner, width)
    return inner
