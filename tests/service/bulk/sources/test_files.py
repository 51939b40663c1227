"""Files, folders, globs and lists."""

import io
import os
import socket
import sys
from pathlib import Path

import pytest

from service.bulk.errors import BulkError
from service.bulk.sources import Options
from service.bulk.sources.files import find_images
from tests.service.bulk.sources.gallery import PICTURES, contents, folder_of, goes_on_anywhere, ids, inputs


def test_a_folder_is_its_images_at_any_depth_folder_by_folder(tmp_path: Path) -> None:
    names = ["b/2.png", "b/1.PNG", "a.jpg", "b.jpg", "b/c/d.webp", "b-2/x.gif", "notes.txt", "b/x.parquet"]
    folder_of(tmp_path, {name: b"x" for name in names})
    found = inputs(tmp_path)
    assert ids(found) == [
        str(tmp_path / name) for name in ["a.jpg", "b/1.PNG", "b/2.png", "b/c/d.webp", "b-2/x.gif", "b.jpg"]
    ]
    assert ids(found) == [str(path) for path in sorted(Path(each) for each in ids(found))]
    assert found.total == 6
    goes_on_anywhere(found)


def test_names_are_taken_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "in", {"a.jpg": b"a", "b.jpg": b"b", "odd.xyz": b"o"})
    monkeypatch.chdir(tmp_path)
    assert ids(inputs("./in/b.jpg", "in/", "in/odd.xyz")) == ["in/b.jpg", "in/a.jpg", "in/odd.xyz"]


@pytest.mark.parametrize(
    "name", ["a b.jpg", "é\u0301 日本.jpg", "line\nbreak.jpg", "star*[1]?{2,3}.jpg", "-.jpg", "#%20?.jpg"]
)
def test_odd_names_are_files_like_others(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path, {name: b"here"})
    for given in (tmp_path, tmp_path / name):
        assert (ids(inputs(given)), contents(inputs(given))) == ([str(tmp_path / name)], [b"here"])


def test_a_name_that_is_no_utf_8_is_escaped_in_the_id_and_read_as_it_is(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")
    Path(name).write_bytes(b"here")
    for found in (inputs(tmp_path), inputs(name), inputs(lists=["-"], standard_input=io.BytesIO(os.fsencode(name)))):
        assert (ids(found), contents(found)) == ([f"{tmp_path}/\\xff.jpg"], [b"here"])


def test_globs_and_braces(tmp_path: Path) -> None:
    folder_of(tmp_path, {name: b"x" for name in ["a/1.jpg", "a/b/2.jpg", "a/3.png", "4.jpg"]})
    assert ids(inputs(f"{tmp_path}/**/*.jpg")) == [f"{tmp_path}/{name}" for name in ["4.jpg", "a/1.jpg", "a/b/2.jpg"]]
    assert ids(inputs(f"{tmp_path}/{{a,}}/*.jpg")) == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/4.jpg"]
    with pytest.raises(BulkError, match=r"Nothing matches .*\*\.gif"):
        inputs(f"{tmp_path}/*.gif")


def test_braces_name_files_that_must_be_there(tmp_path: Path) -> None:
    folder_of(tmp_path, {f"{number:02}.jpg": b"x" for number in range(8, 12)})
    assert ids(inputs(f"{tmp_path}/{{08..11}}.jpg")) == [f"{tmp_path}/{name}.jpg" for name in ["08", "09", "10", "11"]]
    assert ids(inputs(f"{tmp_path}/{{10,08}}.jpg")) == [f"{tmp_path}/10.jpg", f"{tmp_path}/08.jpg"]
    with pytest.raises(BulkError, match=r"07\.jpg is not there"):
        inputs(f"{tmp_path}/{{07..11}}.jpg")
    with pytest.raises(BulkError, match="no range"):
        inputs(f"{tmp_path}/{{0..99999999}}.jpg")


def test_a_list_is_the_same_from_a_file_and_from_standard_input(tmp_path: Path) -> None:
    folder_of(tmp_path / "in")
    lines = "".join(f"{tmp_path}/in/{name}\n" for name in PICTURES) + f"\r\n{tmp_path}/in/gone.jpg\r\n"
    (tmp_path / "list").write_text(lines)
    of_file = inputs(lists=[str(tmp_path / "list")])
    of_input = inputs(lists=["-"], standard_input=io.BytesIO(lines.encode()))
    assert ids(of_file) == [*(f"{tmp_path}/in/{name}" for name in PICTURES), f"{tmp_path}/in/gone.jpg"]
    assert of_file.parameters() == of_input.parameters()
    other = inputs(lists=["-"], standard_input=io.BytesIO(lines.replace("00", "01").encode()))
    assert other.parameters() != of_file.parameters()
    assert list(of_file.rows(3)) == list(of_input.rows(3))
    with pytest.raises(BulkError, match="once"):
        inputs(lists=["-"], texts=["-"])


def test_a_list_may_have_nul_characters_where_lines_end(tmp_path: Path) -> None:
    """As find -print0 writes it, for names with line breaks."""
    names = [f"{tmp_path}/a\nb.jpg", f"{tmp_path}/c.jpg"]
    for end in ("", "\0"):
        found = inputs(lists=["-"], standard_input=io.BytesIO(("\0".join(names) + end).encode()))
        assert ids(found) == names


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    folder_of(tmp_path, {"marked": b"\xef\xbb\xbfa.jpg\nb.jpg\n", "twice": b"\xef\xbb\xbf\n\xef\xbb\xbfx"})
    assert ids(inputs(lists=[str(tmp_path / "marked")])) == ["a.jpg", "b.jpg"]
    assert contents(inputs(texts=[str(tmp_path / "marked")])) == ["a.jpg", "b.jpg"]
    assert contents(inputs(texts=[str(tmp_path / "twice")])) == ["", "\ufeffx"]


def test_standard_input_that_is_closed_is_said_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    assert contents(inputs(tmp_path)) == [*PICTURES.values()]
    with pytest.raises(BulkError, match="Standard input is closed"):
        inputs(lists=["-"])
    with pytest.raises(BulkError, match="Standard input is closed"):
        inputs(texts=["-"])


def test_of_a_folder_pipes_and_devices_are_left_out_and_broken_links_are_items(tmp_path: Path) -> None:
    """Reading of a pipe or a device may never end. A broken link is an error of its item."""
    folder_of(tmp_path, {"a.jpg": b"a"})
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
    names = [str(tmp_path / name) for name in ("a.jpg", "gone.jpg", "loop.jpg")]
    for given in (tmp_path, f"{tmp_path}/*.jpg"):
        assert ids(inputs(given)) == names
    assert [str(path) for path in find_images([tmp_path])] == names
    assert ids(inputs(tmp_path / "pipe.jpg")) == [str(tmp_path / "pipe.jpg")], "named, it may be a pipe"


def test_texts_are_lines_and_a_bad_one_is_an_error_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("a cat\r\n\nein Würfel\n".encode() + b"\xff\nno end")
    found = inputs(texts=[str(tmp_path / "texts.txt")])
    assert contents(found) == ["a cat", "", "ein Würfel", "Line 4 is not UTF-8.", "no end"]
    assert ids(found) == ["a cat", "", "ein Würfel", "\\xff", "no end"]
    assert found.total == 5
    goes_on_anywhere(found)
    piped = inputs(texts=["-"], standard_input=io.BytesIO((tmp_path / "texts.txt").read_bytes()))
    assert (piped.parameters(), contents(piped, 2)) == (found.parameters(), contents(found, 2))


def test_a_pipe_of_texts_is_read_once_and_of_a_table_or_a_tar_refused(tmp_path: Path) -> None:
    """As a shell writes them: --texts <(sort captions.txt)."""
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\n")
    os.close(writer)
    try:
        found = inputs(texts=[f"/dev/fd/{reader}"])
    finally:
        os.close(reader)
    assert contents(found) == ["one", "two"]
    goes_on_anywhere(found)
    for name in ("x.csv", "x.parquet", "x.tar"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(BulkError, match="is a pipe or a device: a table or a tar is read more than once"):
            inputs(tmp_path / name)


def test_kinds_are_joined_in_order(tmp_path: Path) -> None:
    folder_of(tmp_path / "in")
    (tmp_path / "texts").write_text("one\ntwo\n")
    (tmp_path / "list").write_text(f"{tmp_path}/in/03.jpg\n")
    found = inputs(tmp_path / "in", lists=[str(tmp_path / "list")], texts=[str(tmp_path / "texts")])
    assert contents(found) == [*PICTURES.values(), PICTURES["03.jpg"], "one", "two"]
    goes_on_anywhere(found)


def test_the_parameters_tell_the_same_files_from_others(tmp_path: Path) -> None:
    folder_of(tmp_path)
    before = inputs(tmp_path).parameters()
    assert inputs(tmp_path).parameters() == before
    (tmp_path / "05.jpg").rename(tmp_path / "x.jpg")
    assert inputs(tmp_path).parameters() != before


def test_what_is_not_there_and_what_is_empty_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for names, words in (
        ([tmp_path / "gone"], "gone is not there"),
        ([tmp_path / "empty"], "no image, table or tar"),
        ([], "nothing to embed"),
        (["foo://bar/x.jpg"], "foo"),
        (["memory://nowhere/*.jpg"], "/nowhere is not there"),
        (["x" * 300], "is not there"),
    ):
        with pytest.raises(BulkError, match=words):
            inputs(*names)
    with pytest.raises(BulkError, match="list"):
        inputs(lists=[str(tmp_path / "list")])
    folder_of(tmp_path)
    with pytest.raises(BulkError, match="Columns are of tables"):
        inputs(tmp_path, options=Options(carried=["a"]))
