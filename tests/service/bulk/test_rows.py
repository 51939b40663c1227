"""Rows of a result: what is carried stands in them as it came."""

import pickle

import pyarrow as pa
import pytest

from service.bulk.errors import BulkError
from service.bulk.items import Cell, Item
from service.bulk.rows import Columns

NANOSECONDS = pa.time64("ns")


def columns(kind: pa.DataType) -> Columns:
    return Columns({}, "float32", pa.schema([("c", kind)]))


def carried(items: list[Item], kind: pa.DataType) -> pa.Array:
    return columns(kind).batch(items, [""] * len(items))["c"]


def test_cells_of_several_columns_in_any_order_and_items_without() -> None:
    """As --retry-errors, and sources of several kinds, have them."""
    first, second = pa.array([0, 1, None, 3], NANOSECONDS), pa.array([10, 11], NANOSECONDS)
    cells = [
        Cell(first, 1),
        Cell(first, 2),
        Cell(first, 0),
        None,
        Cell(second, 1),
        Cell(first, 3),
        Cell(pa.nulls(2), 1),
    ]
    items = [Item("a", text="x", columns={"c": cell} if cell else {}) for cell in cells]
    found = carried(items, NANOSECONDS)
    assert found.equals(pa.array([1, None, 0, None, 11, 3, None], NANOSECONDS))
    assert carried(pickle.loads(pickle.dumps(items)), NANOSECONDS).equals(found)
    assert carried([], NANOSECONDS).equals(pa.array([], NANOSECONDS))


def test_cells_are_pickled_with_their_column_once() -> None:
    column = pa.array(["x" * 1000] * 64)
    assert len(pickle.dumps([Cell(column, row) for row in range(64)])) < 70_000


def test_cells_are_equal_if_their_values_are() -> None:
    assert Cell(pa.array([1, 2]), 1) == Cell(pa.array([2]), 0)
    assert Cell(pa.array([1, 2]), 1) != Cell(pa.array([1]), 0)
    assert Cell(pa.array([2]), 0) != 2


def test_a_value_of_another_type() -> None:
    with pytest.raises(BulkError, match="A value of the column c is no int8"):
        carried([Item("a", text="x", columns={"c": "words"})], pa.int8())


@pytest.mark.parametrize(
    "kind",
    [
        pa.month_day_nano_interval(),
        pa.dense_union([pa.field("x", pa.int8())]),
        pa.list_(pa.run_end_encoded(pa.int32(), pa.string())),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ],
)
def test_what_no_result_can_hold_is_said_at_once(kind: pa.DataType) -> None:
    with pytest.raises(BulkError, match=r"Column c is .*, which no result can hold: carry others"):
        columns(kind)
