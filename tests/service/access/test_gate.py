"""The gate: who may enter, how many images at once and a day, and what is given back."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.access.errors import DayUsedUp, ImagesInFlight, InvalidKey, RequestsTooFast, TooManyImagesForKey
from service.access.gate import Gate
from service.access.keys import Key
from tests.support.keys import file_of, secret_of

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
SECRET = {secret_of("a").encode()}


def gate_of(tmp_path: Path, **limits: Any) -> Gate:
    return Gate([], file_of(tmp_path / "keys.toml", a=limits), clock=lambda: 0.0, wall=lambda: NOON)


def key_of(gate: Gate) -> Key:
    return gate.enter(SECRET)


def test_one_known_key_enters_and_nothing_else_does(tmp_path: Path) -> None:
    gate = gate_of(tmp_path)
    assert gate.enter(SECRET).name == "a"
    for secrets, why in ((set(), "none was sent"), ({b"x"}, "none of this server's"), ({b"x", *SECRET}, "different")):
        with pytest.raises(InvalidKey, match=why) as refused:
            gate.enter(secrets)
        assert secret_of("a") not in str(refused.value)


def test_requests_over_the_rate_are_told_when_to_come_again(tmp_path: Path) -> None:
    gate = gate_of(tmp_path, requests_per_second=2)
    gate.enter(SECRET)
    gate.enter(SECRET)
    with pytest.raises(RequestsTooFast, match="2 requests a second") as refused:
        gate.enter(SECRET)
    assert refused.value.retry_after_s == 1


def test_images_in_flight_are_those_of_all_requests_at_once(tmp_path: Path) -> None:
    gate = gate_of(tmp_path, images_in_flight=4)
    key = key_of(gate)
    with gate.images(key, 3):
        with pytest.raises(ImagesInFlight, match="and has 3"), gate.images(key, 2):
            pass
        with gate.images(key, 1), gate.images(key, 0):
            pass
    with gate.images(key, 4):
        pass
    with pytest.raises(TooManyImagesForKey, match="may have 4 in flight"), gate.images(key, 5):
        pass


def test_images_count_once_they_are_answered(tmp_path: Path) -> None:
    gate = gate_of(tmp_path, images_per_day=10)
    key = key_of(gate)
    with gate.images(key, 6):
        pass
    with pytest.raises(RuntimeError), gate.images(key, 4):
        raise RuntimeError
    with pytest.raises(DayUsedUp, match="has 4 left") as refused, gate.images(key, 5):
        pass
    assert refused.value.retry_after_s == 43_200
    with gate.images(key, 4):
        pass
    with pytest.raises(TooManyImagesForKey, match="10 a day"), gate.images(key, 11):
        pass


def test_after_a_count_that_failed_none_is_tried_for_two_seconds(tmp_path: Path) -> None:
    """Each could wait for who holds the file, and the server with it."""
    usage, clock = tmp_path / "usage", SimpleNamespace(now=0.0)
    path = file_of(tmp_path / "keys.toml", a={"requests_per_second": 1})
    gate = Gate([], path, usage=usage, clock=lambda: clock.now, wall=lambda: NOON)
    with sqlite3.connect(usage) as other:
        other.execute("ALTER TABLE requests RENAME TO elsewhere")
        gate.enter(SECRET)
        other.execute("ALTER TABLE elsewhere RENAME TO requests")
    for clock.now in (1.0, 1.9, 2.0):
        gate.enter(SECRET)
    with pytest.raises(RequestsTooFast):
        gate.enter(SECRET)


def test_what_cannot_be_counted_is_let_in_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    usage = tmp_path / "usage"
    limits: dict[str, Any] = {"requests_per_second": 1, "images_per_day": 1}
    gate = Gate([], file_of(tmp_path / "keys.toml", a=limits), usage=usage, clock=lambda: 0.0)
    with sqlite3.connect(usage) as other:
        other.executescript("DROP TABLE requests; DROP TABLE images")
    for _ in range(3):
        with gate.images(gate.enter(SECRET), 1):
            pass
    assert caplog.text.count("cannot be counted") == 1
    with pytest.raises(InvalidKey):
        gate.enter({b"x"})
