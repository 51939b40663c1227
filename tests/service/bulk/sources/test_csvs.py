"""CSV: all of it is text, and what is wrong with a file is said in our words."""

import gc
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.bulk.errors import BulkError
from service.bulk.items import Cell, Item
from service.bulk.sources import Options, csvs
from tests.service.bulk.sources.gallery import contents, folder_of, goes_on_anywhere, ids, inputs, items_of


def csv_of(folder: Path, text: str | bytes, name: str = "x.csv") -> Path:
    folder_of(folder, {f"{number}.jpg": bytes([number]) for number in range(3)})
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def carried(path: Path, column: str) -> Sequence[object]:
    """The column's values in the items."""
    cells = [item.columns[column] for item in items_of(inputs(path, options=Options(carried=[column])))]
    return [cell.array()[0].as_py() if isinstance(cell, Cell) else cell for cell in cells]


def test_values_are_as_they_stand(tmp_path: Path) -> None:
    values = ["007", "0010", "1e3", "NA", "null", "1984-01-01", "true", " 5", "1,5", 'a "b"', "ünder\nway", ""]
    lines = [f'"{value}"' if set(value) & set(',\n"') else value for value in values]
    lines[values.index('a "b"')] = '"a ""b"""'
    path = csv_of(tmp_path, "\n".join(["sku,image", *(f"{line},0.jpg" for line in lines)]))
    assert carried(path, "sku") == values
    assert ids(inputs(path, options=Options(id="sku"))) == [*values[:-1], "0.jpg"]
    assert contents(inputs(path, options=Options(text="sku"))) == values
    goes_on_anywhere(inputs(path, options=Options(id="sku", carried=["sku"])))


def test_shards_need_not_look_alike(tmp_path: Path) -> None:
    csv_of(tmp_path, "image,price\n0.jpg,1\n", "a.csv")
    csv_of(tmp_path, "image,price\n", "b.csv")
    csv_of(tmp_path, "price,image\n1.5,1.jpg\n", "c.csv")
    tables = tmp_path / "[abc].csv"
    assert contents(inputs(tables)) == [b"\0", b"\1"]
    assert carried(tables, "price") == ["1", "1.5"]


@pytest.mark.parametrize(
    "text",
    [
        "image,n\r\n0.jpg,1\r\n1.jpg,2\r\n",
        "\ufeffimage,n\n0.jpg,1\n\n1.jpg,2",
        '\ufeff"image","n"\r0.jpg,1\r1.jpg,2\r',
    ],
)
def test_line_ends_empty_lines_and_marks_of_the_encoding(tmp_path: Path, text: str) -> None:
    path = csv_of(tmp_path, text)
    assert (contents(inputs(path)), carried(path, "n")) == ([b"\0", b"\1"], ["1", "2"])


def test_a_tab_stands_between_the_fields_of_a_tsv(tmp_path: Path) -> None:
    assert carried(csv_of(tmp_path, "image\tt\n0.jpg\ta,b\n", "x.tsv"), "t") == ["a,b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title,image\ncafé,0.jpg\n".encode("latin1"), r"x\.csv is not UTF-8: .* iconv -f latin1 -t utf-8"),
        ("title,image\ncafé,0.jpg\n".encode("utf-16"), r"x\.csv is not UTF-8: .* iconv -f utf-16 -t utf-8"),
        ("", r"x\.csv is empty: the first line of a CSV names its columns"),
        (
            "image,n\n0.jpg\n",
            r"x\.csv cannot be read as a table: line 2: its number of fields is 1, that of the first line 2\.",
        ),
        ('image,n\n0.jpg,"1\n1.jpg,2\n', r"x\.csv cannot be read as a table: line 3: unexpected end of data"),
        ("image;n\n0.jpg;1\n", r"No column of .*x\.csv looks like images.* image;n \(string\)"),
    ],
)
def test_what_is_no_csv(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(BulkError, match=words):
        contents(inputs(csv_of(tmp_path, text)))


def test_rows_before_an_error_are_given(tmp_path: Path) -> None:
    items = items_of(inputs(csv_of(tmp_path, "image,n\n" + "0.jpg,1\n" * 64 + "1.jpg\n")))
    assert len([next(items) for _ in range(64)]) == 64
    with pytest.raises(BulkError, match="line 66: its number of fields is 1"):
        next(items)


def test_a_field_may_be_long_but_not_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv_of(tmp_path, f'image,t\n0.jpg,x\n1.jpg,"{"y" * 3_000_000}"\n2.jpg,z\n')
    assert [len(str(each)) for each in carried(path, "t")] == [1, 3_000_000, 1]
    monkeypatch.setattr(csvs, "_LONGEST", 1_000_000)
    with pytest.raises(BulkError, match=r"x\.csv cannot be read as a table: .*over 1,000,000 characters"):
        contents(inputs(path))


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_nobody_need_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    rows = inputs(csv_of(tmp_path, "image\n" + "0.jpg\n" * 1000, f"x.{suffix}")).rows(0)
    assert isinstance(next(rows), Item)
    del rows
    gc.collect()  # an exception where the reader ends would fail the test
