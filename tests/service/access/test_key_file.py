"""Changing the file of keys: in one step, and nothing else in it."""

import os
from pathlib import Path

import pytest

from service.access.key_file import add_key, remove_key
from service.access.keys import Key, digest_of, read_file
from tests.support.keys import file_of


def key(name: str) -> Key:
    return Key(name, digest_of(f"vt_{name}"), images_per_day=5, models=("demo:vit",))


def names(path: Path) -> list[str]:
    return [key.name for key in read_file(path)]


def test_a_new_file_is_the_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    add_key(path, key("a"))
    add_key(path, key("b"))
    assert read_file(path) == [key("a"), key("b")]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_stands_there_stays_as_it_is(tmp_path: Path) -> None:
    path = file_of(tmp_path / "keys.toml", a={}, b={}, c={})
    path.write_text("# ours\n" + path.read_text().replace("[c]", "# of the third\n[c]").rstrip("\n"))
    path.chmod(0o640)
    before = path.stat()
    add_key(path, key("d"))
    assert path.stat().st_ino != before.st_ino, "replaced in one step"
    remove_key(path, "b")
    text = path.read_text()
    assert text.startswith("# ours\n")
    assert "\n\n# of the third\n[c]\n" in text
    assert "\n\n\n" not in text
    assert names(path) == ["a", "c", "d"]
    assert path.stat().st_mode == before.st_mode
    remove_key(path, "d")
    remove_key(path, "c")
    remove_key(path, "a")
    assert names(path) == []


def test_a_name_that_is_there_is_refused_and_the_file_is_as_it_was(tmp_path: Path) -> None:
    path = file_of(tmp_path / "keys.toml", a={})
    before = path.read_bytes()
    for wrong in (key("a"), Key("b", digest_of("vt_a"))):
        with pytest.raises(ValueError, match=r"two keys|the same key"):
            add_key(path, wrong)
    with pytest.raises(ValueError, match=r"has no key 'b'\. It has a"):
        remove_key(path, "b")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ['a = { sha256 = "D" }', '[\n  "a"\n]', 'a.sha256 = "D"', '[b]\nsha256="E"\n[a]\nsha256 = "D"\n[a.models]']
)
def test_a_key_in_an_unusual_form_is_left_to_its_owner(text: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011  # of TOML, or ours
        remove_key(path, "a")
    assert path.read_text() == text


def test_quotes_and_remarks_around_a_name_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'["a"]  # the first\nsha256 = "{digest_of("1").hex()}"\n')
    remove_key(path, "a")
    assert path.read_text() == ""


def test_a_byte_order_mark_is_no_part_of_the_keys(tmp_path: Path) -> None:
    path = file_of(tmp_path / "keys.toml", a={})
    path.write_text(path.read_text(), "utf-8-sig")
    assert names(path) == ["a"]
    add_key(path, key("b"))
    remove_key(path, "a")
    assert names(path) == ["b"]


def test_another_encoding_is_told_by_reading_and_by_changing(tmp_path: Path) -> None:
    path = file_of(tmp_path / "keys.toml", a={})
    path.write_text(path.read_text(), "utf-16")
    for does in (read_file, lambda path: add_key(path, key("b"))):
        with pytest.raises(ValueError, match=r"keys\.toml cannot be read: it is not UTF-8"):
            does(path)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    path = file_of(tmp_path / "real.toml", a={})
    link = tmp_path / "keys.toml"
    link.symlink_to(path)
    add_key(link, key("b"))
    assert link.is_symlink()
    assert names(path) == ["a", "b"]


def test_two_do_not_change_it_at_once(tmp_path: Path) -> None:
    path = file_of(tmp_path / "keys.toml", a={})
    (tmp_path / "keys.toml.new").touch()
    with pytest.raises(ValueError, match=r"somebody else is changing .* delete .*keys\.toml\.new"):
        add_key(path, key("b"))
    assert (tmp_path / "keys.toml.new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written"):
        add_key(tmp_path / "keys.toml", key("a"))
