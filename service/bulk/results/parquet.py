"""Results in Parquet: a file, or a folder of shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.errors import BulkError
from service.bulk.results.columns import name_column, names_of, vectors_of, width_of
from service.bulk.results.result import Origin, Result, Stretch, unreadable
from service.bulk.rows import Array

_READ_AHEAD_BYTES = 1024 * 1024


@dataclass(frozen=True)
class _Group:
    """A row group of a Parquet file."""

    path: Path
    metadata: pq.FileMetaData
    number: int
    column: str
    width: int
    block_numbers: int

    @property
    def rows(self) -> int:
        rows: int = self.metadata.row_group(self.number).num_rows
        return rows

    def blocks(self) -> Iterator[Array]:
        """Raises BulkError."""
        with self._open() as file:
            block = max(1, self.block_numbers // self.width)
            batches = file.iter_batches(block, row_groups=[self.number], columns=[self.column])
            try:
                for batch in batches:
                    yield vectors_of(batch.column(0), self.width)
            except (OSError, pa.ArrowException) as error:
                raise unreadable(self.path, error) from error

    def names(self) -> list[str] | None:
        """Of its rows; None if no column has them. Raises BulkError."""
        with self._open() as file:
            column = name_column(file.schema_arrow)
            if column is None:
                return None
            try:
                return names_of(file.read_row_group(self.number, columns=[column])[column])
            except (OSError, ValueError, pa.ArrowException) as error:
                raise unreadable(self.path, error) from error

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, metadata=self.metadata, buffer_size=_READ_AHEAD_BYTES, pre_buffer=False)


def of_tables(path: Path, files: Sequence[Path], *, column: str, block_numbers: int) -> Result:
    """The rows of all files in order. Raises BulkError if they are not of one run."""
    groups: list[_Group] = []
    origins: dict[Origin | None, Path] = {}
    widths: dict[int, Path] = {}
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                metadata, schema = table.metadata, table.schema_arrow
                width = width_of(file, column, schema, lambda: table.iter_batches(64, columns=[column]))
        except (OSError, pa.ArrowException) as error:
            raise unreadable(file, error) from error
        origins.setdefault(Origin.of_schema(schema), file)
        if width:
            widths.setdefault(width, file)
            numbers = range(metadata.num_row_groups)
            groups += [_Group(file, metadata, number, column, width, block_numbers) for number in numbers]
    if not sum(group.rows for group in groups):
        raise BulkError(f"{path} has no vectors.")
    if len(origins) > 1 or len(widths) > 1:
        one, other = list(origins.values() if len(origins) > 1 else widths.values())[:2]
        raise BulkError(f"{one} and {other.name} are of different runs: {_differences(list(origins), list(widths))}.")
    stretches = [Stretch(group.rows, group.blocks) for group in groups]
    return Result(path, next(iter(origins)), next(iter(widths)), stretches, partial(_names, groups))


def _names(groups: Sequence[_Group], places: Sequence[int]) -> list[str]:
    """Reads those groups alone that hold one of the rows."""
    ends = np.cumsum([group.rows for group in groups])
    inside = np.searchsorted(ends, places, side="right")
    held = {number: groups[number].names() for number in set(inside.tolist())}
    names = []
    for place, number in zip(places, inside.tolist(), strict=True):
        group = held[number]
        names.append(f"row {place}" if group is None else group[place - int(ends[number]) + groups[number].rows])
    return names


def _differences(origins: Sequence[Origin | None], widths: Sequence[int]) -> str:
    if len(origins) == 1:
        return f"vectors of {widths[0]} numbers and of {widths[1]}"
    one, other = origins[:2]
    if one is None or other is None:
        return "one says which encoder it is of, the other does not"
    return "; ".join(
        f"{each.name} {getattr(one, each.name)} and {getattr(other, each.name)}"
        for each in fields(Origin)
        if getattr(one, each.name) != getattr(other, each.name)
    )
