"""The keys follow their file, and a bad file changes nothing."""

import logging
import os
from pathlib import Path

import pytest

from service.access.key_ring import KeyRing
from service.access.keys import digest_of
from tests.support.keys import file_of, secret_of


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def names(ring: KeyRing) -> list[str]:
    return sorted(ring.keys.by_name)


def names_later(ring: KeyRing, clock: Clock) -> list[str]:
    """Once a change has been seen, and has stayed."""
    clock.now += 1.0
    names(ring)
    clock.now += 0.1
    return names(ring)


def test_a_file_that_changes_is_read_again_once_a_second(tmp_path: Path, clock: Clock) -> None:
    path = file_of(tmp_path / "keys.toml", a={})
    ring = KeyRing([], path, clock=clock)
    before = ring.keys
    assert names(ring) == ["a"]
    file_of(path, b={}, c={})
    clock.now = 0.9
    assert names(ring) == ["a"]
    assert names_later(ring, clock) == ["b", "c"]
    assert ring.keys.find(secret_of("a").encode()) is None
    assert ring.keys is not before
    same = ring.keys
    clock.now = 5.0
    assert ring.keys is same, "nothing has changed"


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path, clock: Clock) -> None:
    """Most programs empty a file, and then write it: any beginning of it may be there, and be a file of keys."""
    path = file_of(tmp_path / "keys.toml", a={}, b={"images_per_day": 1000})
    ring = KeyRing([], path, clock=clock)
    whole = path.read_text()
    for written in range(0, len(whole), 7):
        path.write_text(whole[:written])
        clock.now += 1.0
        assert ring.keys.by_name["b"].images_per_day == 1000
    path.write_text(whole)
    before = ring.keys
    assert names_later(ring, clock) == ["a", "b"]
    assert ring.keys is before


def test_a_change_that_keeps_time_and_size_is_seen(tmp_path: Path, clock: Clock) -> None:
    path = file_of(tmp_path / "keys.toml", a={})
    ring = KeyRing([], path, clock=clock)
    before = path.stat()
    file_of(path, b={})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert names_later(ring, clock) == ["b"]


def test_a_file_of_no_keys_lets_nobody_in(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    path = file_of(tmp_path / "keys.toml", a={})
    ring = KeyRing([], path, clock=clock)
    path.write_text("")
    assert names_later(ring, clock) == []
    KeyRing([], path, clock=clock)
    assert "has no key" in caplog.text


@pytest.mark.parametrize("harm", ["broken", "gone", "folder", "too large", "half", "deep", "pipe"])
def test_a_bad_file_keeps_the_keys_and_is_told_once(
    harm: str, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path = file_of(tmp_path / "keys.toml", a={})
    ring = KeyRing([], path, clock=clock)
    whole = path.read_text()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm == "pipe":
        os.mkfifo(path)
    elif harm != "gone":
        path.write_text(
            {"broken": "[a", "too large": "#" * 11_000_000, "half": whole[:-20], "deep": "a=" + "[" * 9999}[harm]
        )
    for _ in range(3):
        assert names_later(ring, clock) == ["a"]
    assert caplog.text.count("the access keys stay as they were") == 1
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    file_of(path, b={})
    assert names_later(ring, clock) == ["b"]


def test_a_mounted_secret_that_changes_as_a_link_is_followed(tmp_path: Path, clock: Clock) -> None:
    """As Kubernetes does it: the file is a link through a folder that is a link, which is replaced."""
    for version, name in (("one", "a"), ("two", "b")):
        (tmp_path / version).mkdir()
        file_of(tmp_path / version / "keys.toml", **{name: {}})
    data, path = tmp_path / "..data", tmp_path / "keys.toml"
    data.symlink_to("one")
    path.symlink_to("..data/keys.toml")
    ring = KeyRing([], path, clock=clock)
    assert names(ring) == ["a"]
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(data)
    assert names_later(ring, clock) == ["b"]


def test_keys_of_the_environment_stand_beside_those_of_the_file(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = file_of(tmp_path / "keys.toml", a={})
    ring = KeyRing([f"env=sha256:{digest_of('vt_env').hex()}"], path, clock=clock)
    assert names(ring) == ["a", "env"]
    file_of(path, env={})
    assert names_later(ring, clock) == ["a", "env"], "the file has a key of the same name: it is not taken"
    assert "two keys 'env'" in caplog.text or "the same key" in caplog.text
