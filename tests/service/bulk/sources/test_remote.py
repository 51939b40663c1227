"""Buckets and web servers: the same items as on this disk, however busy they are."""

import pickle
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError
from service.bulk.items import Item, Pending, Row
from service.bulk.reading import read_ahead
from service.bulk.sources import Options
from service.bulk.sources.hosts import MOST_IN_A_ROW, Hosts
from service.bulk.sources.retries import OutOfReach, Patience, Refused
from tests.service.bulk.sources.gallery import (
    PICTURES,
    QUICK,
    contents,
    folder_of,
    goes_on_anywhere,
    ids,
    inputs,
    parquet_of,
    table_of,
    tar_of,
)
from tests.support.buckets import store_of

WHOLE = list(PICTURES.values())
ODD = ["a b.jpg", "é.jpg", "plus+%20&.jpg", "deep/er/x.jpg"]


@pytest.fixture
def as_s3(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sets where S3 is, as an operator does."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return monkeypatch


def everything() -> dict[str, bytes]:
    """The pictures as files, as a table and its paths, and as tars, in one bucket."""
    pictures = list(PICTURES.items())
    return {
        **{f"shop/in/{name}": each for name, each in PICTURES.items()},
        "shop/in/notes.txt": b"words",
        "shop/table/x.parquet": parquet_of(table_of()),
        "shop/in/paths.parquet": parquet_of(pa.table({"path": list(PICTURES)})),
        "shop/tars/0.tar": tar_of(pictures[:6]),
        "shop/tars/1.tar": tar_of(pictures[6:]),
        **{f"shop/odd/{name}": b"odd" for name in ODD},
    }


@pytest.mark.parametrize("busy", [0, 2])
def test_a_bucket_gives_what_a_disk_gives(as_s3: pytest.MonkeyPatch, busy: int) -> None:
    with store_of(everything(), busy=busy) as store:
        as_s3.setenv("AWS_ENDPOINT_URL", store.url)
        for names in (["s3://shop/in"], ["s3://shop/in/"], ["s3://shop/in/*.jpg"], ["s3://shop/in/{00..10}.jpg"]):
            found = inputs(*names)
            assert (contents(found), ids(found)) == (WHOLE, [f"s3://shop/in/{name}" for name in PICTURES])
        for name in ("s3://shop/table", "s3://shop/in/paths.parquet", "s3://shop/tars/*.tar"):
            found = inputs(name)
            assert contents(found) == WHOLE
            assert found.parameters() == inputs(name).parameters()
            goes_on_anywhere(found)


def test_another_file_system_of_fsspec_is_a_bucket_like_others() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/{name}": each for name, each in everything().items()})
    try:
        for name in ("in", "in/*.jpg", "**/[01]?.jpg", "table/x.parquet", "in/paths.parquet", "tars"):
            found = inputs(f"memory://shop/{name}")
            assert (contents(found), found.files) == (WHOLE, []), "no result takes their place"
    finally:
        memory.rm("/shop", recursive=True)


def test_odd_keys_and_what_is_not_there(as_s3: pytest.MonkeyPatch) -> None:
    with store_of(everything()) as store:
        as_s3.setenv("AWS_ENDPOINT_URL", store.url)
        assert sorted(ids(inputs("s3://shop/odd"))) == sorted(f"s3://shop/odd/{name}" for name in ODD)
        assert contents(inputs("s3://shop/odd")) == [b"odd"] * len(ODD)
        with pytest.raises(BulkError, match="s3://shop/nowhere is not there"):
            inputs("s3://shop/nowhere")


def test_an_object_that_is_gone_is_an_error_of_its_item(as_s3: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("s3://shop/in/00.jpg\ns3://shop/gone.jpg\ns3://shop/in/02.jpg\n")
    with store_of(everything()) as store:
        as_s3.setenv("AWS_ENDPOINT_URL", store.url)
        first, gone, last = contents(inputs(lists=[str(tmp_path / "list")]))
    assert (first, last) == (WHOLE[0], WHOLE[2])
    assert str(gone).startswith("s3://shop/gone.jpg cannot be read")


def test_a_table_in_a_bucket_cannot_name_files_of_this_machine(as_s3: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder_of(tmp_path)
    paths = [str(tmp_path / "00.jpg"), f"file://{tmp_path}/00.jpg", "../secret.jpg", "s3://other/x.jpg", "x\\..\\y"]
    files = {"shop/in/x.parquet": parquet_of(pa.table({"path": paths})), "shop/secret.jpg": b"secret"}
    with store_of(files) as store:
        as_s3.setenv("AWS_ENDPOINT_URL", store.url)
        assert all("outside the table's folder" in str(each) for each in contents(inputs("s3://shop/in/x.parquet")))
        trusting = inputs("s3://shop/in/x.parquet", options=Options(trust_paths=True))
        assert contents(trusting)[0] == WHOLE[0]


@pytest.mark.parametrize("busy", [0, 2])
def test_a_web_server_gives_files_tables_and_tars(tmp_path: Path, busy: int) -> None:
    with store_of(everything(), busy=busy) as store:
        lines = "".join(f"{store.url}/shop/in/{name}\n" for name in [*PICTURES, "gone.jpg"])
        (tmp_path / "list").write_text(lines)
        *found, gone = contents(inputs(lists=[str(tmp_path / "list")]))
        assert (found, gone) == (WHOLE, f"{store.url}/shop/in/gone.jpg cannot be read: it answered 404.")
        for name in ("table/x.parquet", "in/paths.parquet", "tars/{0..1}.tar"):
            assert contents(inputs(f"{store.url}/shop/{name}")) == WHOLE
        goes_on_anywhere(inputs(f"{store.url}/shop/tars/{{0..1}}.tar"))
        with pytest.raises(BulkError, match="does not list its files"):
            inputs(f"{store.url}/shop/in/")


def test_a_table_on_a_server_that_stays_busy_ends_the_run_and_the_next_one_goes_on() -> None:
    with (
        store_of(everything(), busy=10**6) as store,
        pytest.raises(BulkError, match=r"503.*the same command continues"),
    ):
        contents(inputs(f"{store.url}/shop/table/x.parquet"))


def test_an_image_that_never_comes_is_an_error_of_its_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a dead link does not keep the rest of a list."""
    look_up = socket.getaddrinfo

    def looked_up(host: str, *rest: Any, **more: Any) -> Any:
        if host == "gone.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    with store_of(everything()) as store, socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
        taken.close()
        gone = [
            f"http://127.0.0.1:{closed}/x.jpg",
            "http://gone.invalid/x.jpg",
            "http://xn--zzzzzz-.com/x.jpg",
            "http://.com/x.jpg",
            f"http://{'a' * 70}.com/x.jpg",
            "http://[::bad/x.jpg",
            "foo://bar/x.jpg",
            "s3:///x.jpg",
            "gs://",
        ]
        lines = [f"{store.url}/shop/in/00.jpg", *gone, f"{store.url}/shop/in/01.jpg"]
        (tmp_path / "list").write_text("\n".join(lines))
        first, *errors, last = contents(inputs(lists=[str(tmp_path / "list")]))
    assert (first, last) == (WHOLE[0], WHOLE[1])
    for error, words in zip(
        errors,
        [
            "refused",
            "no server of this name",
            *["host cannot be looked up"] * 3,
            "Invalid port",
            "no scheme",
            *["names no bucket"] * 2,
        ],
        strict=True,
    ):
        assert words in str(error)


class Reading:
    """Images of servers. dead: the servers that give nothing. asked: how often each one was."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.hosts = Hosts(Patience(first_s=0.0001, longest_s=0.0002, total_s=0.0005))

    def image(self, host: str) -> bytes | ImageError:
        def read() -> bytes:
            self.asked[host] += 1
            if host in self.dead:
                raise OSError("it answered 500")
            return b"image"

        return self.hosts.image(f"http://{host}/x.jpg", read, Event())


def test_a_server_that_gave_nothing_is_then_asked_once_for_each_image_until_one_comes() -> None:
    reading = Reading()
    reading.dead = {"dead"}
    assert str(reading.image("dead")) == "http://dead/x.jpg cannot be read: it answered 500."
    tries = reading.asked["dead"]
    assert tries > 1
    assert isinstance(reading.image("dead"), ImageError)
    assert reading.asked["dead"] == tries + 1
    reading.dead.clear()
    assert reading.image("dead") == b"image"
    reading.dead = {"dead"}
    assert isinstance(reading.image("dead"), ImageError)
    assert reading.asked["dead"] > tries + 3


def test_a_server_that_gives_other_images_meanwhile_is_not_given_up() -> None:
    reading = Reading()
    assert reading.image("good") == b"image"

    def read() -> bytes:
        assert reading.image("good") == b"image"
        raise OSError("it answered 500")

    assert isinstance(reading.hosts.image("http://good/bad.jpg", read, Event()), ImageError)
    reading.dead, tries = {"good"}, reading.asked["good"]
    reading.image("good")
    assert reading.asked["good"] > tries + 1


def test_where_no_image_comes_from_anywhere_the_run_ends() -> None:
    reading = Reading()
    reading.dead = {str(number) for number in range(200)}
    for number in range(MOST_IN_A_ROW - 1):
        assert isinstance(reading.image(str(number)), ImageError)
    with pytest.raises(BulkError, match=r"64 images in a row.*it answered 500.*the same command continues"):
        reading.image("100")
    for number in range(MOST_IN_A_ROW - 1):
        reading.image(str(number))
    reading.image("good")
    assert isinstance(reading.image("101"), ImageError)


def test_that_a_server_is_out_of_reach_is_told_from_another_machine_too() -> None:
    """Ray pickles what a reader raises."""

    def read() -> bytes:
        raise OSError("it answered 503")

    with pytest.raises(OutOfReach) as raised:
        QUICK.read("s3://shop/x", read)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_what_cannot_be_helped_is_not_tried_again() -> None:
    tries = []

    def refused() -> None:
        tries.append(1)
        raise Refused("no")

    with pytest.raises(Refused):
        QUICK.read("x", refused)
    assert len(tries) == 1


def test_a_scheme_without_its_library_says_what_to_install() -> None:
    with pytest.raises(BulkError, match=r"needs a library that is not installed here: .*adlfs"):
        inputs("abfs://container/x.jpg")


@dataclass(frozen=True)
class Reads:
    read: Callable[[Event], bytes | ImageError]


def pending(number: int, read: Callable[[], bytes]) -> Row:
    return Pending(Item(str(number)), Reads(lambda stop: read()))


def test_items_stay_in_order_and_only_some_are_read_ahead() -> None:
    gate, began = Event(), []

    def first() -> bytes:
        assert gate.wait(30)
        return b"0"

    def rows() -> Iterator[Row]:
        yield pending(0, first)
        for number in range(1, 1000):
            began.append(number)
            if number == 32:
                gate.set()
            yield pending(number, str(number).encode)

    items = read_ahead(rows())
    assert next(items).source == b"0"
    assert len(began) == 32
    assert [item.source for item in items] == [str(number).encode() for number in range(1, 1000)]


def test_an_error_of_the_source_comes_after_the_items_before_it() -> None:
    def rows() -> Iterator[Row]:
        yield pending(0, lambda: b"0")
        yield Item("1", b"1")
        raise BulkError("broken")

    items = read_ahead(rows())
    assert [next(items).source, next(items).source] == [b"0", b"1"]
    with pytest.raises(BulkError, match="broken"):
        next(items)


def test_a_reader_that_stops_does_not_wait_for_a_busy_server() -> None:
    def busy() -> bytes:
        raise OSError("503")

    unread = Reads(partial(Patience(first_s=3600, longest_s=3600).image, "x", busy))
    items = read_ahead(iter([Item("0", b"0"), Pending(Item("1"), unread), Item("2", ImageError("no"))]))
    assert next(items).source == b"0"
    items.close()  # type: ignore[attr-defined]
