"""The columns of a table that are searched: vectors, and what names the rows."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from service.bulk.errors import BulkError
from service.bulk.results.result import POOLED, tokens_only
from service.bulk.rows import Array

_NAMES = ("id", "path")


def name_column(schema: pa.Schema) -> str | None:
    """The column that says what a row is, if there is one."""
    return next((name for name in _NAMES if name in schema.names), None)


def names_of(column: pa.ChunkedArray) -> list[str]:
    """The names in it; bytes that are no UTF-8 are escaped."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    values = column.cast(pa.large_binary()).to_pylist() if is_text else column.to_pylist()
    return [each.decode("utf-8", "backslashreplace") if isinstance(each, bytes) else str(each) for each in values]


def width_of(path: Path, column: str, schema: pa.Schema, batches: Callable[[], Iterable[pa.RecordBatch]]) -> int | None:
    """Of the vectors; None if there is none to tell it. batches: the column's rows, some at a time.

    Raises BulkError if the column does not hold vectors.
    """
    if column not in schema.names:
        if column == POOLED and "tokens" in schema.names:
            raise tokens_only(path)
        raise BulkError(f"{path} has no column '{column}'. It has: {', '.join(schema.names)}.")
    kind = schema.field(column).type
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise BulkError(f"The column '{column}' of {path} is {kind}; vectors are lists of float16 or float32.")
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    # Lists of other programs may have any length: the first tells.
    return next((len(row) for batch in batches() for row in batch.column(0) if row.is_valid), None)


def vectors_of(column: pa.Array, width: int) -> Array:
    """[n, width]. Raises ArrowInvalid if a row has another length."""
    column = column.cast(pa.list_(column.type.value_type, width))
    values: Array = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)  # of the rows that are not null
    if not column.null_count:
        return values
    everything = np.full((len(column), width), np.nan, values.dtype)
    everything[column.is_valid().to_numpy(zero_copy_only=False)] = values
    return everything
