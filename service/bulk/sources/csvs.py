"""CSV: a line a row, all of it text as it stands. What looks like a number may be a name: 007, 1e3, NA."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import BinaryIO

import pyarrow as pa

from service.bulk.errors import BulkError
from service.bulk.sources.place import shown

SUFFIXES = frozenset({".csv", ".tsv"})
_LONGEST = 64 * 1024 * 1024
"""Characters of a line, and of a field: a quotation mark that is never closed makes a field of the rest of the file."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

csv.field_size_limit(_LONGEST)  # of the whole process: Python's own is 128 KiB


def schema_of(name: str, file: BinaryIO) -> pa.Schema:
    """The columns that the first line names, all of text. Raises BulkError if there is none."""
    return pa.schema([(column, pa.string()) for column in next(_lines(name, file))])


def batches_of(name: str, file: BinaryIO, *, rows: int) -> Iterator[pa.RecordBatch]:
    """All rows, this many at a time. Raises BulkError where the file is no CSV or no UTF-8."""
    lines = _lines(name, file)
    columns = next(lines)
    while batch := list(islice(lines, rows)):
        values = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
        yield pa.RecordBatch.from_arrays(values, columns)


def _lines(name: str, file: BinaryIO) -> Iterator[Sequence[str]]:
    """The fields of each line, the names first, without empty lines. It closes the file."""
    encoding = "utf-16" if file.read(2) in _UTF_16 else "latin1"
    file.seek(0)
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        reader = csv.reader(_short(text), strict=True, delimiter="\t" if _suffix(name) == ".tsv" else ",")
        columns: Sequence[str] = ()
        try:
            for line in filter(None, reader):
                columns = columns or line
                if len(line) != len(columns):
                    raise csv.Error(f"its number of fields is {len(line)}, that of the first line {len(columns)}")
                yield line
        except csv.Error as error:
            raise BulkError(f"{shown(name)} cannot be read as a table: line {reader.line_num:,}: {error}.") from error
        except UnicodeDecodeError as error:
            raise BulkError(
                f"{shown(name)} is not UTF-8: convert it, for example with iconv -f {encoding} -t utf-8."
            ) from error
    if not columns:
        raise BulkError(f"{shown(name)} is empty: the first line of a CSV names its columns.")


def _short(text: io.TextIOWrapper) -> Iterator[str]:
    """Lines. One that does not end is not read to the end of the file."""
    while line := text.readline(_LONGEST):
        if len(line) == _LONGEST and not line.endswith(("\r", "\n")):
            raise csv.Error(f"it is over {_LONGEST:,} characters long")
        yield line


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
