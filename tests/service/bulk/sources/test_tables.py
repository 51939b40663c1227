"""Parquet, Arrow and CSV: which column is taken, what is carried, and what a table may make this machine read."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pytest

from service.bulk.errors import BulkError
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
    assert [item.columns for item in items_of(found)] == [{"label": number} for number in range(11)]
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


def test_columns_are_carried_with_their_types(tmp_path: Path) -> None:
    more = {
        "score": pa.array([1.5] * 11, pa.float32()),
        "tags": pa.array([["a", "b"]] * 11, pa.list_(pa.string())),
        "seen": pa.array([10**6] * 11, pa.timestamp("us", "UTC")),
        "kind": pa.array(["x", None] * 5 + ["x"]).dictionary_encode(),
    }
    table = table_of(**more)
    found = inputs(written(tmp_path, "x.parquet", table), options=Options(carried=["tags", "score", "seen", "kind"]))
    assert [(field.name, field.type) for field in found.columns] == [
        (name, table.schema.field(name).type) for name in ("tags", "score", "seen", "kind")
    ]
    carried = pa.Table.from_pylist([dict(item.columns) for item in items_of(found)], found.columns)
    assert carried.equals(table.select(["tags", "score", "seen", "kind"]))


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
