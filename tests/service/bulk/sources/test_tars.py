"""Webdataset tars."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from service.bulk.errors import BulkError
from service.bulk.sources import Options
from tests.service.bulk.sources.gallery import (
    PICTURES,
    content,
    contents,
    goes_on_anywhere,
    ids,
    inputs,
    items_of,
    tar_of,
)

WHOLE = list(PICTURES.values())
SAMPLES = [
    ("a/0.json", b'{"n": 0}'), ("a/0.JPG", b"zero"), ("a/0.txt", b"null"),
    ("b.0/1.seg.png", b"mask"), ("b.0/1.txt", "eins \xff".encode("latin-1")),
    ("2.txt", b"two"), ("2.cls", b"7"),
    ("folder.d/é x.webp", b"three"), (".hidden", b""), ("README", b""),
]  # fmt: skip


def test_a_sample_is_an_item_and_its_key_the_id(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(PICTURES))
    found = inputs(tmp_path / "x.tar")
    assert (contents(found), ids(found)) == (WHOLE, [name.removesuffix(".jpg") for name in PICTURES])
    goes_on_anywhere(found)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz"])
def test_compressed_ones_too(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(tar_of(PICTURES)))
    found = inputs(tmp_path / name)
    assert contents(found) == WHOLE
    goes_on_anywhere(found)


def test_members_of_a_sample_are_columns_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(SAMPLES))
    found = inputs(tmp_path / "x.tar", options=Options(carried=["txt", "json"]))
    assert ids(found) == ["a/0", "b.0/1", "2", "folder.d/é x"]
    assert contents(found) == [b"zero", b"mask", "The sample has no image: it has .txt, .cls.", b"three"]
    assert found.columns == pa.schema([("txt", pa.string()), ("json", pa.string())])
    assert [dict(item.columns) for item in items_of(found)] == [
        {"txt": "null", "json": '{"n": 0}'},
        {"txt": "eins \\xff", "json": None},
        {"txt": "two", "json": None},
        {"txt": None, "json": None},
    ]
    goes_on_anywhere(found)


def test_members_are_chosen_by_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([("0.seg.png", b"mask"), ("0.jpg", b"image"), ("0.txt", b"words")]))
    assert contents(inputs(tmp_path / "x.tar")) == [b"mask"]
    assert contents(inputs(tmp_path / "x.tar", options=Options(image="jpg", id="txt"))) == [b"image"]
    assert ids(inputs(tmp_path / "x.tar", options=Options(image="jpg", id="txt"))) == ["words"]
    assert contents(inputs(tmp_path / "x.tar", options=Options(text="txt"))) == ["words"]
    assert contents(inputs(tmp_path / "x.tar", options=Options(image="gif"))) == [
        "The sample has no image .gif: it has .seg.png, .jpg, .txt."
    ]


def test_shards_by_braces_by_folder_and_by_glob(tmp_path: Path) -> None:
    pictures = list(PICTURES.items())
    for number, first in enumerate((0, 4, 8)):
        (tmp_path / f"s-{number:04}.tar").write_bytes(tar_of(pictures[first : first + 4]))
    for name in (tmp_path, f"{tmp_path}/s-{{0000..0002}}.tar", f"{tmp_path}/*.tar"):
        assert contents(inputs(name)) == WHOLE
    goes_on_anywhere(inputs(tmp_path))


@pytest.mark.parametrize(
    ("cut", "whole"),
    [
        (lambda tar: tar[: 4 * 1024 + 200], 3),  # in a header
        (lambda tar: tar[: 4 * 1024 + 514], 4),  # in a member
        (lambda tar: tar[: 4 * 1024] + b"x" * 2048, 3),  # no header
    ],
)
def test_a_tar_that_breaks_off_says_so_after_its_samples(
    tmp_path: Path, cut: Callable[[bytes], bytes], whole: int
) -> None:
    (tmp_path / "x.tar").write_bytes(cut(tar_of(PICTURES)))
    for start in (0, 2):
        got = []
        with pytest.raises(BulkError, match=r"x\.tar cannot be read to its end"):  # noqa: PT012  # what came before counts
            for item in items_of(inputs(tmp_path / "x.tar"), start):
                got.append(content(item))
        assert got == WHOLE[start:whole]


@pytest.mark.parametrize("damaged", [b"", b"no tar", b"x" * 4096])
def test_what_is_no_tar(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(damaged)
    with pytest.raises(BulkError, match=r"x\.tar cannot be read"):
        contents(inputs(tmp_path / "x.tar"))


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of({}))
    assert contents(inputs(tmp_path / "x.tar")) == []


def test_tables_and_tars_in_one_folder_are_told_apart_by_a_glob(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(PICTURES))
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(BulkError, match=r"tables and tars.*\*\.tar"):
        inputs(tmp_path)
    assert contents(inputs(f"{tmp_path}/*.tar")) == WHOLE
