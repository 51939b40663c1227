"""Webdataset tars."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from service.bulk.errors import BulkError
from service.bulk.rows import Columns
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


def add(tar: tarfile.TarFile, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
    """A member; headers: of pax."""
    about = tarfile.TarInfo(name)
    about.size = len(content)
    about.pax_headers = headers or {}
    tar.addfile(about, io.BytesIO(content))


def test_a_sample_is_an_item_and_its_key_the_id(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(PICTURES))
    found = inputs(tmp_path / "x.tar")
    assert (contents(found), ids(found)) == (WHOLE, [name.removesuffix(".jpg") for name in PICTURES])
    goes_on_anywhere(found)


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("x.tar.gz", gzip.compress),
        ("x.tgz", gzip.compress),
        ("x.tar.bz2", bz2.compress),
        ("x.tbz2", bz2.compress),
        ("x.tar.xz", lzma.compress),
        ("x.txz", lzma.compress),
    ],
)
def test_compressed_ones_too(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(compress(tar_of(PICTURES)))
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
    for suffix in ("jpg", ".jpg", "JPG"):
        assert contents(inputs(tmp_path / "x.tar", options=Options(image=suffix, id="txt"))) == [b"image"]
    assert ids(inputs(tmp_path / "x.tar", options=Options(image="jpg", id="txt"))) == ["words"]
    assert contents(inputs(tmp_path / "x.tar", options=Options(text="txt"))) == ["words"]
    assert contents(inputs(tmp_path / "x.tar", options=Options(image="gif"))) == [
        "The sample has no image .gif: it has .seg.png, .jpg, .txt."
    ]


def test_of_several_images_none_is_taken_unasked(tmp_path: Path) -> None:
    """As of a table's columns. Dots in names make one sample of several photographs, which must not get lost."""
    names = ["IMG_2024.01.02.jpg", "IMG_2024.01.03.jpg"]
    (tmp_path / "x.tar").write_bytes(tar_of([(name, b"photo") for name in names] + [("b.jpg", b"b")]))
    found = inputs(tmp_path / "x.tar")
    assert ids(found) == ["IMG_2024", "b"]
    assert contents(found) == [
        "The sample has 2 images, .01.02.jpg, .01.03.jpg: name one with --image-column. The name of a sample ends at "
        "its first dot.",
        b"b",
    ]
    goes_on_anywhere(found)


def test_of_two_members_of_one_name_none_is_taken(tmp_path: Path) -> None:
    twice = [("a.jpg", b"1"), ("a.JPG", b"2"), ("b.jpg", b"b"), ("b.txt", b"x"), ("b.txt", b"y")]
    (tmp_path / "x.tar").write_bytes(tar_of(twice))
    assert contents(inputs(tmp_path / "x.tar")) == ["The sample has two members .jpg.", b"b"]
    for options in (Options(carried=["txt"]), Options(text="txt")):
        assert contents(inputs(tmp_path / "x.tar", options=options))[1] == "The sample has two members .txt."


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_is_an_error_of_its_sample(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.jpg", b"a")
        for name in ("b.jpg", "c.txt"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.jpg"
            tar.addfile(link)
        add(tar, "c.jpg", b"c")
    found = inputs(tmp_path / "x.tar")
    assert ids(found) == ["a", "b", "c"]
    words = "as a link to a.jpg: write the tar with tar --dereference --hard-dereference."
    assert contents(found) == [b"a", f"The sample has .jpg {words}", b"c"]
    assert contents(inputs(tmp_path / "x.tar", options=Options(carried=["txt"])))[2] == f"The sample has .txt {words}"
    goes_on_anywhere(found)


def test_an_id_is_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([("0.jpg", b"0"), ("0.cls", b"5\n"), ("1.jpg", b"1"), ("1.cls", b"\n")]))
    assert ids(inputs(tmp_path / "x.tar", options=Options(id=".cls"))) == ["5", "1"]


def test_members_that_no_sample_has_are_said_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(SAMPLES))
    said: list[str] = []
    options = Options(carried=[".txt", "jsno"], id="clas")
    found = inputs(tmp_path / "x.tar", options=options, warn=said.append)
    assert found.columns.names == ["txt", "jsno"]
    list(found.rows(3))
    assert said == ["No sample of the tars has a member .clas, .jsno."]


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


@pytest.mark.parametrize(
    ("name", "compress"), [("x.tar.gz", gzip.compress), ("x.tar.bz2", bz2.compress), ("x.tar.xz", lzma.compress)]
)
def test_a_compressed_tar_with_a_wrong_checksum_says_so(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    """It stands behind the end of the tar."""
    compressed = bytearray(compress(tar_of(PICTURES)))
    compressed[-8 if name == "x.tar.gz" else -12] ^= 1
    (tmp_path / name).write_bytes(compressed)
    with pytest.raises(BulkError, match=r"x\.tar\.\w+ cannot be read to its end"):
        contents(inputs(tmp_path / name))


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "1,a", "GNU.sparse.size": "5"},
        {"GNU.sparse.size": "zz", "GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"size": "99999999999999"},
        {"size": "9" * 30},
        {"size": "-1536"},
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_member_with_a_damaged_header_ends_the_tar(
    tmp_path: Path, headers: dict[str, str], compress: Callable[[bytes], bytes]
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        add(tar, "a.jpg", b"a")
        add(tar, "b.jpg", b"b", headers)
    (tmp_path / "x.tar").write_bytes(compress(file.getvalue()))
    with pytest.raises(BulkError, match=r"x\.tar cannot be read to its end"):
        contents(inputs(tmp_path / "x.tar"))


def test_a_sparse_member_is_no_image(tmp_path: Path) -> None:
    """Its size is not that of what is in the tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        add(tar, "a.jpg", b"a", {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999999999999"})
    (tmp_path / "x.tar").write_bytes(file.getvalue())
    assert contents(inputs(tmp_path / "x.tar")) == ["The sample has .jpg as a sparse file, which is not read."]


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


def test_tables_and_tars_may_write_the_same_values_in_different_ways(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([("0.jpg", b"zero"), ("0.txt", b"a")]))
    for kind in (pa.string(), pa.large_string()):
        table = pa.table({"image": [b"one"], "txt": pa.array(["b"], kind)})
        pa.parquet.write_table(table, tmp_path / "x.parquet")
        found = inputs(tmp_path / "x.tar", tmp_path / "x.parquet", options=Options(carried=["txt"]))
        assert found.columns == pa.schema([("txt", kind)])
        items = list(items_of(found))
        rows = Columns({}, "float32", found.columns).batch(items, [""] * len(items))
        assert rows["txt"].equals(pa.array(["a", "b"], kind))
    pa.parquet.write_table(pa.table({"image": [b"one"], "txt": [1]}), tmp_path / "x.parquet")
    with pytest.raises(BulkError, match=r"do not agree on column txt: it is .*string.* int64"):
        inputs(tmp_path / "x.tar", tmp_path / "x.parquet", options=Options(carried=["txt"]))
