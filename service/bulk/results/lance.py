"""Results in Lance: a dataset, which is a folder."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from service.bulk import lance
from service.bulk.errors import BulkError
from service.bulk.results.columns import name_column, names_of, vectors_of, width_of
from service.bulk.results.result import STRETCH_BLOCKS, Origin, Result, Stretch, unreadable
from service.bulk.rows import Array

if TYPE_CHECKING:
    from lance import LanceDataset


def of_lance(path: Path, *, column: str, block_numbers: int) -> Result:
    """Raises BulkError if the library is not installed, or there are no vectors in this column."""
    try:
        dataset = lance.opened(path)
        rows = dataset.count_rows()
        width = width_of(path, column, dataset.schema, lambda: dataset.to_batches(columns=[column], batch_size=64))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not rows or not width:
        raise BulkError(f"{path} has no vectors.")
    block = max(1, block_numbers // width)
    most = STRETCH_BLOCKS * block
    stretches = [
        Stretch(min(most, rows - start), partial(_blocks, dataset, path, column, width, start, most, block))
        for start in range(0, rows, most)
    ]
    return Result(path, Origin.of_schema(dataset.schema), width, stretches, partial(_names, dataset, path))


def _blocks(
    dataset: "LanceDataset", path: Path, column: str, width: int, start: int, most: int, block: int
) -> Iterator[Array]:
    """Raises BulkError."""
    try:
        for batch in dataset.to_batches(columns=[column], offset=start, limit=most, batch_size=block):
            yield vectors_of(batch.column(0), width)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def _names(dataset: "LanceDataset", path: Path, places: Sequence[int]) -> list[str]:
    """Raises BulkError."""
    column = name_column(dataset.schema)
    if column is None:
        return [f"row {place}" for place in places]
    try:
        return names_of(dataset.take(list(places), columns=[column])[column])
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
