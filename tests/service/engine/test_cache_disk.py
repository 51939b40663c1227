"""Rows on disk: they outlive the process, are shared, and whatever happens to the file is no request's error."""

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.values import Encoded, Grid
from service.engine import EmbedRequest, Engine
from service.engine.cache.disk import Disk
from service.engine.cache.results import Made, ResultCache
from service.engine.cache.row import KeptRow, from_bytes, to_bytes
from service.scheduling.items import Answer
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.serving import app_of, backend_of, client_of, noise
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

MIB = 2**20
KEY = b"k" * 32
FILE = "rows-1.sqlite"


def row(seed: int = 0, tokens: int = 4) -> Encoded:
    numbers = np.random.default_rng(seed).standard_normal((tokens + 1, 8)).astype(np.float32)
    return Encoded(Grid(1, tokens), 1, numbers, numbers[0].astype(ml_dtypes.bfloat16))


def same(one: Encoded, other: Encoded) -> bool:
    pairs = ((one.tokens, other.tokens), (one.pooled, other.pooled))
    return (one.grid, one.prefix_tokens) == (other.grid, other.prefix_tokens) and all(
        a is b or (a is not None and b is not None and a.dtype == b.dtype and (a == b).all()) for a, b in pairs
    )


@pytest.mark.parametrize(
    "row",
    [
        row(),
        replace(row(), pooled=None),
        replace(row(), tokens=None, prefix_tokens=0),
        replace(row(), grid=Grid(*np.array([1, 4])), prefix_tokens=np.int64(1), pooled=np.ones(3)),  # type: ignore[arg-type]  # a plug-in's
    ],
    ids=["both", "tokens", "pooled", "numpy's"],
)
def test_a_row_comes_back_as_it_was(row: Encoded) -> None:
    found = from_bytes(KEY, to_bytes(KEY, KeptRow(row, 12.5)))
    assert found is not None
    assert found.made == 12.5
    assert same(found.row, row)
    assert all(array is None or not array.flags.writeable for array in (found.row.tokens, found.row.pooled))


def test_a_value_that_is_not_whole_is_none() -> None:
    value = to_bytes(KEY, KeptRow(row(), 1.0))
    broken = [value[:length] for length in range(0, len(value), 7)]
    broken += [value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :] for at in range(0, len(value), 5)]
    assert all(from_bytes(KEY, each) is None for each in [*broken, value + b"0"])
    assert from_bytes(b"of another" * 3, value) is None


@asynccontextmanager
async def engine_of(folder: Path, encoder: FakeEncoder | None = None, **given: Any) -> AsyncIterator[Engine]:
    encoder = encoder or FakeEncoder()
    chosen = Settings(model=(encoder.spec.id,), **{"cache": MIB, "cache_dir": str(folder), "cache_disk": MIB, **given})
    async with asyncio.timeout(30), Engine(chosen, backend=backend_of(encoder)) as engine:
        yield engine


async def hits(engine: Engine, *seeds: int) -> list[int]:
    found = []
    for seed in seeds:
        result = await engine.embed(EmbedRequest([noise(seed)]))
        assert result.cached is not None
        found.append(result.cached.hits)
    return found


def written(folder: Path) -> int:
    """How many rows are in the file."""
    with closing(sqlite3.connect(folder / FILE)) as rows:
        return int(rows.execute("SELECT count(*) FROM rows").fetchone()[0])


async def test_rows_outlive_the_engine(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        assert await hits(engine, 1, 2) == [0, 0]
        first = await engine.embed(EmbedRequest([noise(1)]))
        await until(lambda: written(tmp_path) == 2)
    encoder = FakeEncoder()
    async with engine_of(tmp_path, encoder) as engine:
        encoder.batches.clear()
        second = await engine.embed(EmbedRequest([noise(1)]))
        assert await hits(engine, 1, 2, 3) == [1, 1, 0]
        assert encoder.batches == [1]
        assert engine.now().cached["disk"] > 0
    for one, other in zip(first.items, second.items, strict=True):
        assert not isinstance(one, Exception)
        assert not isinstance(other, Exception)
        assert one.tokens is not None
        assert other.tokens is not None
        assert one.tokens.tobytes() == other.tokens.tobytes()


async def test_all_who_wait_for_a_row_from_the_disk_are_told_its_age(tmp_path: Path) -> None:
    made = 0

    async def make() -> Made:
        nonlocal made
        made += 1
        return Answer(row(), 0.0, 0.0)

    async def asked(now: float, askers: int) -> list[float | None]:
        disk = Disk(tmp_path, MIB)
        cache = ResultCache(MIB, about=(), metrics=Metrics([]), disk=disk, now=lambda: now)
        found = await asyncio.gather(*(cache.row(b"image", b"origin", make) for _ in range(askers)))
        await until(lambda: not disk.backlog)
        cache.close()
        return [each.age_s for each in found]

    assert await asked(1000.0, askers=2) == [None, 0.0]
    assert await asked(1060.0, askers=3) == [60.0, 60.0, 60.0]
    assert made == 1


async def test_other_weights_software_or_hardware_have_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_of(tmp_path) as engine:
        assert await hits(engine, 1) == [0]
        await until(lambda: written(tmp_path) == 1)
    async with engine_of(tmp_path, FakeEncoder(fake_spec(revision="another checkpoint"))) as engine:
        assert await hits(engine, 1) == [0]
    settings = Settings(model=("fake:vit",), cache=MIB, cache_dir=str(tmp_path))
    async with Engine(settings, backend=replace(backend_of(), hardware=lambda: "another card")) as engine:
        assert await hits(engine, 1) == [0]
    package = tmp_path / "packages" / "decoder-2.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: decoder\nVersion: 2\n")
    (package / "entry_points.txt").write_text("[visiontower.encoders]\nplug-in = plug_in.adapter:Adapter\n")
    code = package.parent / "plug_in" / "adapter.py"
    code.parent.mkdir()
    monkeypatch.syspath_prepend(package.parent)
    for of_a_working_copy in ("layers = 1", "layers = 2"):
        code.write_text(of_a_working_copy)
        async with engine_of(tmp_path) as engine:
            assert await hits(engine, 1) == [0]
    monkeypatch.undo()
    async with engine_of(tmp_path) as engine:
        assert await hits(engine, 1) == [1]


def disk_of(folder: Path, **given: Any) -> Disk:
    return Disk(folder, **{"limit": MIB, **given})


@asynccontextmanager
async def opened(folder: Path, **given: Any) -> AsyncIterator[Disk]:
    disk = disk_of(folder, **given)
    try:
        async with asyncio.timeout(30):
            yield disk
    finally:
        disk.close()


async def kept(disk: Disk, key: bytes, value: Encoded | None = None) -> Encoded | None:
    """Look it up; put it before, if there is one, and again if it went with a file that was begun anew."""
    for _ in range(1 if value is None else 5):
        if value is not None:
            disk.put(key, KeptRow(value, 1.0))
            await until(lambda: not disk.backlog)
        if (found := await disk.get(key)) is not None:
            return found.row
    return None


async def test_it_never_takes_more_than_it_may_and_the_row_not_asked_for_longest_goes_first(tmp_path: Path) -> None:
    now = 0.0
    async with opened(tmp_path, limit=2 * MIB, now=lambda: now) as disk:
        for number in range(40):  # of 131 kB each
            now += 1000
            key = number.to_bytes(32, "big")
            assert await kept(disk, key, row(number, tokens=4096)) is not None
            assert await kept(disk, (0).to_bytes(32, "big")) is not None, "it is asked for again and again"
            assert disk.nbytes <= 2 * MIB
        assert await kept(disk, (1).to_bytes(32, "big")) is None
        assert (tmp_path / FILE).stat().st_size <= 2.1 * MIB
        assert await kept(disk, KEY) is None
        disk.put(KEY, KeptRow(row(tokens=80_000), 1.0))  # is larger than all may be
        assert await kept(disk, b"l" * 32, row()) is not None
        assert await kept(disk, KEY) is None
    async with opened(tmp_path, limit=MIB) as disk:
        await until(lambda: (tmp_path / FILE).stat().st_size <= 1.1 * MIB)


WRITER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from encoders.contract.values import Encoded, Grid
from service.engine.cache.disk import Disk
from service.engine.cache.row import KeptRow

async def main():
    disk = Disk(Path(sys.argv[1]), 2**20)
    for number in range(int(sys.argv[2]), 60, 2):
        key, row = number.to_bytes(32, "big"), Encoded(Grid(1, 1), pooled=np.full(500, number, np.float32))
        while await disk.get(key) is None:  # a row is left out if the other process writes for long
            disk.put(key, KeptRow(row, 1.0))
            while disk.backlog:
                await asyncio.sleep(0)
    disk.close()

asyncio.run(main())
"""


async def test_two_processes_share_the_rows(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(first)]) for first in (0, 1)]
    assert [await asyncio.to_thread(each.wait) for each in both] == [0, 0]
    async with opened(tmp_path) as disk:
        for number in range(60):
            found = await kept(disk, number.to_bytes(32, "big"))
            assert found is not None
            assert found.pooled is not None
            assert (found.pooled == number).all()


def is_all_in(file: Path) -> bool:
    """Whether nobody has the file open any more; then all is in it, and nothing beside it."""
    with closing(sqlite3.connect(file, timeout=0)) as rows, suppress(sqlite3.OperationalError):
        return bool(rows.execute("PRAGMA journal_mode = DELETE").fetchone()[0] == "delete")
    return False


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def scribble(file: Path) -> None:
    """Over everything but the file's first page."""
    with file.open("r+b") as stream:
        stream.seek(8192)
        stream.write(b"\xff" * (file.stat().st_size - 8192))


@pytest.mark.parametrize(
    "spoil",
    [truncate, scribble, lambda file: file.write_bytes(b"not a database" * 999), lambda file: file.write_bytes(b"")],
    ids=["truncated", "scribbled", "not a database", "empty"],
)
async def test_a_broken_file_is_begun_anew_and_no_request_fails(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    async with opened(tmp_path) as disk:
        for number in range(20):
            await kept(disk, number.to_bytes(32, "big"), row(number, tokens=500))
    await until(lambda: is_all_in(tmp_path / FILE))
    spoil(tmp_path / FILE)
    async with opened(tmp_path, pause_s=0.0) as disk:
        for number in range(20):
            found = await kept(disk, number.to_bytes(32, "big"))
            assert found is None or same(found, row(number, tokens=500))
        for number in range(20):
            disk.put(number.to_bytes(32, "big"), KeptRow(row(number, tokens=500), 1.0))
        for number in range(20):
            found = await kept(disk, number.to_bytes(32, "big"), row(number, tokens=500))
            assert found is not None
            assert same(found, row(number, tokens=500))
    async with opened(tmp_path) as disk:
        assert await kept(disk, KEY) is None
        assert len(list(tmp_path.glob("*.sqlite"))) == 1


async def test_a_file_of_another_version_is_begun_anew_and_other_files_are_left_alone(tmp_path: Path) -> None:
    others = {tmp_path / name for name in ("rows-backup.sqlite", "rows-007.sqlite", "rows.sqlite")}
    for each in others:
        each.write_text("somebody's")
    with closing(sqlite3.connect(tmp_path / FILE)) as rows, rows:
        rows.execute("CREATE TABLE rows (key BLOB PRIMARY KEY, used REAL, vectors BLOB)")
    async with opened(tmp_path, pause_s=0.0) as disk:
        assert await kept(disk, KEY, row()) is not None
    assert {each for each in tmp_path.glob("rows*.sqlite") if each in others} == others
    assert {each.read_text() for each in others} == {"somebody's"}
    assert not (tmp_path / FILE).exists()


async def test_files_that_somebody_deletes_are_made_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        assert await kept(disk, KEY, row()) is not None
        for each in tmp_path.iterdir():
            each.unlink()
        assert await kept(disk, KEY) is None, "the reader has made the file anew, before the writer has looked"
        assert await kept(disk, KEY, row()) is not None
        assert written(tmp_path) == 1


async def test_a_damaged_row_is_none_and_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path) as disk:
        await kept(disk, KEY, row())
        with closing(sqlite3.connect(tmp_path / FILE)) as rows, rows:
            rows.execute("UPDATE rows SET value = CAST(substr(value, 1, length(value) - 1) || x'00' AS BLOB)")
        assert await kept(disk, KEY) is None
        await until(lambda: written(tmp_path) == 0)
    assert "a row in the cache on disk is damaged" in caplog.text


async def test_a_row_that_comes_after_the_end_is_not_kept(tmp_path: Path) -> None:
    disk = Disk(tmp_path, MIB)
    disk.close()
    disk.put(KEY, KeptRow(row(), made=0.0))
    assert disk.backlog == 0


async def test_a_disk_that_fails_is_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Full, read-only and the like all look so to us; here the table is gone."""
    caplog.set_level(logging.WARNING)
    async with engine_of(tmp_path) as engine:
        await hits(engine, 1)
        await until(lambda: written(tmp_path) == 1)
        with closing(sqlite3.connect(tmp_path / FILE)) as rows, rows:
            rows.execute("DROP TABLE rows")
        assert await hits(engine, 2, 3, 1) == [0, 0, 1]
    assert f"the cache on disk fails, and is left alone for 60 s: {tmp_path / FILE}: no such table: rows" in caplog.text


async def test_another_that_writes_for_long_is_waited_for_once_not_for_each_row(tmp_path: Path) -> None:
    """Else the end of the process, which waits for the thread, would be hours away."""
    async with opened(tmp_path) as disk:
        assert await kept(disk, KEY, row()) is not None
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as rows:
            rows.execute("BEGIN IMMEDIATE")
            for number in range(50):
                disk.put(number.to_bytes(32, "big"), KeptRow(row(), 1.0))
            await until(lambda: not disk.backlog)
        assert written(tmp_path) == 1
        assert await kept(disk, KEY) is not None


async def test_a_disk_that_hangs_holds_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    may_go_on = threading.Event()

    def hanging() -> float:
        assert may_go_on.wait(30)
        return 1.0

    async with opened(tmp_path) as disk:
        assert await kept(disk, KEY, row()) is not None
    async with opened(tmp_path, now=hanging, slow_s=0.01) as disk:
        try:
            assert await asyncio.gather(*(disk.get(KEY) for _ in range(20))) == [None] * 20
        finally:
            may_go_on.set()
    assert caplog.text.count("is left alone for 60 s") == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused_at_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    settings = Settings(model=("fake:vit",), cache=MIB, cache_dir=str(tmp_path))
    with pytest.raises(SettingsError, match="cannot be written to: Permission denied"):
        Engine(settings, backend=backend_of())


def test_a_folder_that_is_none_is_refused_at_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    settings = Settings(model=("fake:vit",), cache=MIB, cache_dir=str(file))
    with pytest.raises(SettingsError, match=f"cache_dir {file} cannot be written to: File exists"):
        Engine(settings, backend=backend_of())
    with pytest.raises(ValidationError, match="set cache too, for example to 256MiB"):
        Settings(cache_dir=str(tmp_path))
    with pytest.raises(ValidationError, match="set cache_dir too"):
        Settings(cache=MIB, cache_disk=MIB)


async def test_the_server_s_log_says_why_it_does_not_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SettingsError):
        async with client_of(app_of(cache=MIB, cache_dir=str(file))):
            pass
    assert f"cannot serve: cache_dir {file} cannot be written to: File exists." in caplog.text


async def test_nobody_else_may_look_into_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    async with opened(folder) as disk:
        await kept(disk, KEY, row())
        files = list(folder.iterdir())
        assert len(files) == 3
        assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *files])
