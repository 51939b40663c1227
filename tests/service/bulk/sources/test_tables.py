"""Parquet, Arrow and CSV: which column is taken, what is carried, and what a table may make this machine read."""

import io
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pytest

from service.bulk.errors import BulkError
from service.bulk.items import Inputs
from service.bulk.rows import Columns
from service.bulk.sources import Options
from service.engine.values import ImageUrl
from tests.service.bulk.sources.gallery import (
    PICTURES,
    content,
    contents,
    folder_of,
    goes_on_anywhere,
    ids,
    inputs,
    items_of,
    parquet_of,
    table_of,
)

WHOLE = list(PICTURES.values())


def written(folder: Path, name: str, table: pa.Table) -> Path:
    """The table in the format of the suffix."""
    path, file = folder / name, io.BytesIO()
    match path.suffix:
        case ".parquet":
            file.write(parquet_of(table))
        case ".feather":
            pa.feather.write_feather(table, file, chunksize=4)
        case ".arrow":
            with pa.ipc.new_file(file, table.schema) as out:
                out.write_table(table, 4)
        case ".arrows":
            with pa.ipc.new_stream(file, table.schema) as out:
                out.write_table(table, 4)
        case ".csv":
            pa.csv.write_csv(table, file)
    path.write_bytes(file.getvalue())
    return path


def carried_by(found: Inputs) -> pa.Table:
    """The columns that the items carry, as a result has them."""
    items = list(items_of(found))
    return pa.Table.from_batches([Columns({}, "float32", found.columns).batch(items, [""] * len(items))]).select(
        found.columns.names
    )


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow", "arrows"])
def test_every_format_holds_the_same_pictures(tmp_path: Path, suffix: str) -> None:
    found = inputs(written(tmp_path, f"x.{suffix}", table_of()))
    assert contents(found) == WHOLE
    assert ids(found) == [f"{tmp_path}/x.{suffix}#{number}" for number in range(len(WHOLE))]
    goes_on_anywhere(found)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_paths_are_of_the_table_s_folder(tmp_path: Path, suffix: str) -> None:
    folder_of(tmp_path / "in" / "a b")
    table = pa.table({"file_name": [f"a b/{name}" for name in PICTURES], "label": list(range(11))})
    found = inputs(written(tmp_path / "in", f"metadata.{suffix}", table), options=Options(carried=["label"]))
    assert (contents(found), ids(found)) == (WHOLE, [f"a b/{name}" for name in PICTURES])
    assert carried_by(found)["label"].cast(pa.int64()).to_pylist() == list(range(11))  # of a CSV they are text
    goes_on_anywhere(found)


def test_images_as_the_library_datasets_writes_them(tmp_path: Path) -> None:
    folder_of(tmp_path)
    images = [
        {"bytes": each if number % 2 else None, "path": name} for number, (name, each) in enumerate(PICTURES.items())
    ]
    images[4] = {"bytes": None, "path": None}
    found = inputs(written(tmp_path, "x.parquet", pa.table({"image": images, "label": list(range(11))})))
    assert contents(found)[:4] == WHOLE[:4]
    assert contents(found)[4] == "There is no image: column image is null."
    assert ids(found)[3:5] == ["03.jpg", f"{tmp_path}/x.parquet#4"]
    goes_on_anywhere(found)


def test_a_folder_of_shards_is_read_in_order_without_what_is_unfinished(tmp_path: Path) -> None:
    table = table_of()
    for number, first in enumerate((0, 4, 8)):
        written(tmp_path, f"part-{number}.parquet", table.slice(first, 4))
    (tmp_path / "_part-9.parquet").write_bytes(b"half")
    (tmp_path / "readme.md").write_text("words")
    found = inputs(tmp_path, options=Options(id="name"))
    assert (contents(found), ids(found), found.total) == (WHOLE, list(PICTURES), 11)
    goes_on_anywhere(found)


def test_results_inside_a_folder_of_tables_are_no_input(tmp_path: Path) -> None:
    """Finished or not. A result that is named itself is."""
    written(tmp_path, "x.parquet", table_of())
    result, single = tmp_path / "vectors", tmp_path / "vectors.parquet.parts"
    for name in ("vectors", "vectors/metadata", "vectors.parquet.parts", "vectors too"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, "a.parquet", pa.table({"name": ["a"], "image": [b"a"]}))
    (result / "_run.json").write_text("{}")
    (single / "manifest.json").write_text("{}")
    assert contents(inputs(tmp_path)) == [b"a", *WHOLE]
    assert contents(inputs(f"{result}/")) == [b"a", b"a"]


def test_row_groups_before_the_start_are_not_read(tmp_path: Path) -> None:
    """They are destroyed, and nobody notices."""
    path = written(tmp_path, "x.parquet", table_of())
    metadata = pa.parquet.ParquetFile(path).metadata
    begins = metadata.row_group(2).column(0).dictionary_page_offset or metadata.row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[4:begins] = b"\xff" * (begins - 4)
    path.write_bytes(data)
    assert contents(inputs(path), 6) == WHOLE[6:]
    with pytest.raises(BulkError, match=r"x\.parquet cannot be read"):
        contents(inputs(path), 5)


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"a": [b"x"], "b": [b"y"]}, {}, r"2 columns .* --image-column.* a \(binary\), b \(binary\)"),
        ({"label": [1], "words": ["x"]}, {}, r"No column .* label \(int64\), words \(string\)"),
        ({"image": [b"x"]}, {"image": "picture"}, r"no column picture, or two. It has image \(binary\)"),
        ({"image": [b"x"]}, {"carried": ["caption"]}, "no column caption"),
        ({"image": [b"x"]}, {"id": "key"}, "no column key"),
        ({"image": [1]}, {"image": "image"}, "int64: neither bytes, nor paths"),
        ({"text": [1]}, {"text": "text"}, "int64, no text"),
        ({"image": [b"x"], "text": ["x"]}, {"image": "image", "text": "text"}, "Give one"),
    ],
)
def test_columns_that_are_not_there_or_not_clear(tmp_path: Path, columns: Any, options: Any, words: str) -> None:
    with pytest.raises(BulkError, match=words):
        inputs(written(tmp_path, "x.parquet", pa.table(columns)), options=Options(**options))


TYPES = {
    "float": pa.array([1.5, None], pa.float32()),
    "list": pa.array([["a", "b"], None]),
    "time": pa.array([1, 1001], pa.time64("ns")),
    "nanoseconds": pa.array([1700000000123456789, None], pa.timestamp("ns", "Europe/Berlin")),
    "fold": pa.array([1698539400000000, 1698543000000000], pa.timestamp("us", "Europe/Berlin")),
    "year 300000": pa.array([10**16, -(10**16)], pa.timestamp("ms")),
    "null": pa.nulls(2),
    "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
    "view": pa.array([[1], [2, 3]], pa.list_view(pa.int32())),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, b"1" * 16], pa.binary(16))),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8())),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8, dtype=np.float32).reshape(2, 2, 2)),
}


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("name", list(TYPES))
def test_columns_are_carried_with_their_types(tmp_path: Path, name: str, suffix: str) -> None:
    column = TYPES[name]
    path = written(tmp_path, f"x.{suffix}", pa.table({"image": [b"x", b"y"], "c": column}))
    found = inputs(path, options=Options(carried=["c"]))
    assert found.columns.field("c").type == column.type
    assert carried_by(found)["c"].combine_chunks().equals(column)
    assert [item.columns for item in pickle.loads(pickle.dumps(list(items_of(found))))] == [
        item.columns for item in items_of(found)
    ]
    goes_on_anywhere(found)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.string()),
        (pa.array([7, None, 7]).dictionary_encode(), pa.int64()),
        (pa.RunEndEncodedArray.from_arrays([1, 2, 3], ["a", None, "a"]), pa.string()),
        (pa.array(["a", None, "a"], pa.string_view()), pa.string()),
        (pa.array([b"a", None, b"a"], pa.binary_view()), pa.binary()),
    ],
)
def test_columns_are_carried_as_the_values_they_stand_for(tmp_path: Path, column: pa.Array, kind: pa.DataType) -> None:
    """Each batch of a dictionary would bring its own."""
    table = pa.table({"image": pa.array([b"x", b"y", b"z"]), "c": column})
    found = inputs(written(tmp_path, "x.arrow", table), options=Options(image="image", carried=["c"]))
    assert found.columns == pa.schema([("c", kind)])
    assert carried_by(found)["c"].to_pylist() == column.to_pylist()


def test_what_is_carried_does_not_keep_the_images_in_memory(tmp_path: Path) -> None:
    table = pa.table({"image": [bytes(1 << 20)] * 3, "label": [1, 2, 3], "word": ["a", "b", "c"]})
    found = inputs(written(tmp_path, "x.arrow", table), options=Options(carried=["label", "word"]))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    cells = [item.columns for item in items_of(found)]
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept + pa.total_allocated_bytes() - before < 1 << 20
    assert len(pickle.dumps(cells)) < 3000


def not_utf8(*values: bytes) -> pa.Array:
    """An array of strings that are no UTF-8, as careless programs write them."""
    return pa.StringArray.from_buffers(len(values), *pa.array(values).buffers()[1:])


def test_text_that_is_not_utf8_costs_no_more_than_its_row(tmp_path: Path) -> None:
    bad = not_utf8(b"ok", b"caf\xe9", b"z")
    path = written(tmp_path, "x.parquet", pa.table({"image": [b"x", b"y", b"z"], "t": bad}))
    found = inputs(path, options=Options(id="t", carried=["t"]))
    assert (contents(found), ids(found)) == ([b"x", b"y", b"z"], ["ok", "caf\\xe9", "z"])
    assert carried_by(found)["t"].to_pylist() == ["ok", "caf\\xe9", "z"]
    texts = inputs(path, options=Options(text="t"))
    assert contents(texts) == ["ok", "The text in column t is not UTF-8.", "z"]
    folder_of(tmp_path, {"ok": b"1", "z": b"2"})
    paths = inputs(written(tmp_path, "y.parquet", pa.table({"path": bad})))
    assert contents(paths) == [b"1", "The path in column path is not UTF-8: 'caf\\xe9'.", b"2"]
    assert ids(paths) == ["ok", "caf\\xe9", "z"]


def test_ids_that_python_has_no_type_for(tmp_path: Path) -> None:
    times = pa.array([5 * 10**11, 0], pa.timestamp("s"))
    found = inputs(written(tmp_path, "x.arrow", pa.table({"image": [b"x", b"y"], "t": times})), options=Options(id="t"))
    assert ids(found) == ["17814-05-16 00:53:20", "1970-01-01 00:00:00"]
    nowhere = pa.table({"image": [b"x"], "t": pa.array([7], pa.timestamp("s", "Nowhere/Town"))})
    assert ids(inputs(written(tmp_path, "nowhere.arrow", nowhere), options=Options(id="t"))) == ["7"]


def test_a_column_may_have_no_name(tmp_path: Path) -> None:
    table = pa.table([pa.array([b"x"]), pa.array([1])], names=["", "n"])
    assert contents(inputs(written(tmp_path, "x.parquet", table))) == [b"x"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"one", b"two"], pa.large_binary()),
        pa.array([b"one", b"two"], pa.binary_view()),
        pa.array([b"one", b"two"]).dictionary_encode(),
        pa.array([b"one", b"two"], pa.binary(3)),
        pa.array([{"bytes": b"one", "path": "a"}, {"bytes": None, "path": "2.jpg"}]),
        pa.array([{"bytes": b"one", "path": None, "width": 1}, {"bytes": b"two", "path": None, "width": 2}]),
        pa.array([{"bytes": None, "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}]),
        pa.array(["1.jpg", "2.jpg"], pa.large_string()),
        pa.array(["1.jpg", "2.jpg"], pa.string_view()),
        pa.array(["1.jpg", "2.jpg"]).dictionary_encode(),
    ],
)
def test_images_in_whatever_type_they_are_written(tmp_path: Path, column: pa.Array) -> None:
    folder_of(tmp_path, {"1.jpg": b"one", "2.jpg": b"two"})
    assert contents(inputs(written(tmp_path, "x.arrow", pa.table({"image": column})))) == [b"one", b"two"]


def test_bytes_of_one_size_are_digests_where_something_else_is_the_image(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x"], "sha256": pa.array([bytes(32)], pa.binary(32))})
    assert contents(inputs(written(tmp_path, "x.parquet", table))) == [b"x"]


def test_an_empty_path_is_no_image(tmp_path: Path) -> None:
    path = written(tmp_path, "x.parquet", pa.table({"image": ["", None]}))
    empty, null = contents(inputs(path))
    assert (empty, null) == ("There is no image: column image is empty.", "There is no image: column image is null.")
    assert ids(inputs(path)) == [f"{path}#0", f"{path}#1"]


def test_texts_of_a_column(tmp_path: Path) -> None:
    table = pa.table({"caption": ["a", None, "c"], "image": [b"x", b"y", b"z"]})
    found = inputs(written(tmp_path, "x.parquet", table), options=Options(text="caption"))
    assert contents(found) == ["a", "There is no text: column caption is null.", "c"]


def test_shards_must_agree_on_types(tmp_path: Path) -> None:
    written(tmp_path, "a.parquet", pa.table({"image": [b"x"], "n": [1]}))
    written(tmp_path, "b.parquet", pa.table({"image": [b"x"], "n": ["1"]}))
    assert contents(inputs(tmp_path)) == [b"x", b"x"]
    with pytest.raises(BulkError, match=r"b\.parquet: column n is string; in .*a\.parquet it is int64"):
        inputs(tmp_path, options=Options(carried=["n"]))


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
        (pa.array(["a"], pa.string_view()), pa.array(["b"]), pa.string()),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode(), pa.string()),
        (pa.array(["a"]), pa.nulls(1), pa.string()),
        (pa.nulls(1), pa.array([7]), pa.int64()),
        (pa.nulls(1), pa.array([[1]], pa.list_view(pa.int8())), pa.list_view(pa.int8())),
        (pa.array([b"a"], pa.large_binary()), pa.array([b"b"]), pa.large_binary()),
        (pa.array([{"a": "x"}]), pa.array([{"a": None}]), pa.struct([("a", pa.string())])),
    ],
)
def test_shards_may_write_the_same_values_in_different_ways(
    tmp_path: Path, first: pa.Array, second: pa.Array, kind: pa.DataType
) -> None:
    written(tmp_path, "a.arrow", pa.table({"image": [b"x"], "c": first}))
    written(tmp_path, "b.arrow", pa.table({"image": pa.array([b"y"], pa.large_binary()), "c": second}))
    found = inputs(tmp_path, options=Options(image="image", carried=["c"]))
    assert (contents(found), found.columns) == ([b"x", b"y"], pa.schema([("c", kind)]))
    assert carried_by(found)["c"].to_pylist() == first.to_pylist() + second.to_pylist()


def test_the_first_shard_may_have_no_image_at_all(tmp_path: Path) -> None:
    folder_of(tmp_path, {"1.jpg": b"one"})
    written(tmp_path, "a.parquet", pa.table({"image": pa.nulls(1)}))
    written(tmp_path, "b.parquet", pa.table({"image": ["1.jpg"]}))
    tables = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert contents(inputs(*tables)) == ["There is no image: column image is null.", b"one"]


@pytest.mark.parametrize(
    "path",
    [
        "../secret.jpg",
        "/etc/passwd",
        "a/../../secret.jpg",
        "file:///etc/passwd",
        "s3://bucket/x.jpg",
        "link/secret.jpg",
        "x\0y",
    ],
)
def test_a_table_cannot_name_files_outside_its_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    found = inputs(written(tmp_path / "in", "x.parquet", pa.table({"path": [path]})))
    assert "outside the table's folder" in str(contents(found)[0])


def test_unless_it_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    table = pa.table({"path": ["../secret.jpg", str(tmp_path / "secret.jpg")]})
    found = inputs(written(tmp_path / "in", "x.parquet", table), options=Options(trust_paths=True))
    assert contents(found) == [b"secret", b"secret"]


def test_web_urls_of_a_table_are_left_to_the_engine_and_its_rule_of_hosts(tmp_path: Path) -> None:
    """Trusted or not."""
    table = pa.table({"url": ["http://169.254.169.254/latest", "HTTPS://example.org/a.jpg"]})
    path = written(tmp_path, "x.parquet", table)
    for trusted in (False, True):
        found = inputs(path, options=Options(trust_paths=trusted))
        assert [item.source for item in items_of(found)] == [ImageUrl(url) for url in table["url"].to_pylist()]


def test_no_rows_and_no_table(tmp_path: Path) -> None:
    assert contents(inputs(written(tmp_path, "empty.parquet", table_of().slice(0, 0)))) == []
    for suffix in ("parquet", "arrow", "feather"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"no table at all")
        with pytest.raises(BulkError, match=rf"bad\.{suffix} cannot be read as a table"):
            inputs(tmp_path / f"bad.{suffix}")


def test_a_table_that_breaks_off_says_so_after_its_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "x.arrows", table_of())
    path.write_bytes(path.read_bytes()[:-100])
    items = items_of(inputs(path))
    assert [content(next(items)) for _ in range(8)] == WHOLE[:8]
    with pytest.raises(BulkError, match=r"x\.arrows cannot be read as a table"):
        list(items)


def test_the_parameters_tell_a_table_from_one_written_anew(tmp_path: Path) -> None:
    path = written(tmp_path, "x.parquet", table_of())
    before = inputs(path).parameters()
    assert inputs(path).parameters() == before
    written(tmp_path, "x.parquet", table_of().slice(1))
    assert inputs(path).parameters() != before
