"""Rows in one SQLite file, that outlive the process and that several processes share. Bounded in bytes.

A value is plain bytes with a checksum (row.py). Whatever is wrong with the disk is a line in the log and a row that is
not found, never an error of a request.
"""

import asyncio
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from service.engine.cache.row import KeptRow, from_bytes, to_bytes

T = TypeVar("T")
_log = logging.getLogger(__name__)

_FILE = "rows-{}.sqlite"
"""Each that is broken is followed by one of the next number: to SQLite a name is a file's for good, as others may have
it open."""
_PAGE_BYTES = 8192
_WAL_BYTES = 16 * 1024 * 1024
"""To which SQLite cuts its log of writes back."""
_BUSY_S = 1.0
"""So long another process that writes is waited for, and then the disk is left alone."""
_SLOW_S = 5.0
"""A row that has not been read by then is computed."""
_TOUCH_S = 60.0
"""A row's use is written down if the last that was is as long ago: reading stays reading."""
_BACKLOG_BYTES = 64 * 1024 * 1024
"""Of what waits to be written; more is left out."""
_STATEMENT_BYTES = 1024
"""Of a statement that waits: about."""
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""The last: it has other tables or columns, as those of another version may."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, used REAL NOT NULL, value BLOB NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS rows_by_use ON rows (used);
"""


class Disk:
    """Lives on the event loop; its work is done on two threads, so that no reader waits for a writer.

    folder: made if it is not there. limit: bytes of the file. now: seconds since the epoch. pause_s: for so long a disk
    that has failed is left alone. slow_s: for so long a read is waited for.
    """

    def __init__(
        self,
        folder: Path,
        limit: int,
        *,
        now: Callable[[], float] = time.time,
        pause_s: float = 60.0,
        slow_s: float = _SLOW_S,
    ) -> None:
        """Raises OSError if the folder cannot be written to."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_writable(folder)
        self._reader = _File(folder, pause_s)
        self._writer = _File(folder, pause_s)
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="cache read")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="cache write")
        self._limit = limit
        self._now = now
        self._slow_s = slow_s
        self._lock = threading.Lock()
        self.backlog = 0
        """Bytes that wait to be written; changed under the lock."""
        self.nbytes = 0
        """Of the rows on disk, when they were last looked at."""
        self._writing.submit(self._writer.use, self._fit)

    async def get(self, key: bytes) -> KeptRow | None:
        """None if it is not there, or cannot be read, or not soon."""
        if self._reader.is_paused:
            return None
        try:
            async with asyncio.timeout(self._slow_s):
                return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, key)
        except TimeoutError:
            self._reader.pause("it is slow")
            return None

    def put(self, key: bytes, kept: KeptRow) -> None:
        """Write it soon; not if much waits to be written, or after `close`."""
        self._write_soon(kept.nbytes, lambda rows: self._insert(rows, key, kept))

    def _write_soon(self, nbytes: int, work: Callable[[sqlite3.Connection], object]) -> None:
        """On any thread. nbytes: of memory that the work holds until it is done."""
        with self._lock:
            if self.backlog + nbytes > _BACKLOG_BYTES:
                return
            self.backlog += nbytes
        try:
            self._writing.submit(self._write, nbytes, work)
        except RuntimeError:  # it is closed
            with self._lock:
                self.backlog -= nbytes

    def close(self) -> None:
        """End the threads after what they are to do. Does not wait."""
        for thread, file in ((self._reading, self._reader), (self._writing, self._writer)):
            thread.submit(file.close)
            thread.shutdown(wait=False)

    # From here on: the two threads.

    def _read(self, key: bytes) -> KeptRow | None:
        found: tuple[bytes, float] | None = self._reader.use(
            lambda rows: rows.execute("SELECT value, used FROM rows WHERE key = ?", (key,)).fetchone()
        )
        if found is None:
            return None
        value, used = found
        kept = from_bytes(key, value)
        now = self._now()
        if kept is None:
            _log.warning("a row in the cache on disk is damaged, and is removed")
            self._write_soon(_STATEMENT_BYTES, lambda rows: rows.execute("DELETE FROM rows WHERE key = ?", (key,)))
        elif abs(now - used) > _TOUCH_S:
            touch = "UPDATE rows SET used = ? WHERE key = ?"
            self._write_soon(_STATEMENT_BYTES, lambda rows: rows.execute(touch, (now, key)))
        return kept

    def _write(self, nbytes: int, work: Callable[[sqlite3.Connection], object]) -> None:
        try:
            self._writer.use(work)
        finally:
            with self._lock:
                self.backlog -= nbytes

    def _insert(self, rows: sqlite3.Connection, key: bytes, kept: KeptRow) -> None:
        value = to_bytes(key, kept)
        needed = len(value) + 2 * _PAGE_BYTES
        if needed > self._limit:
            return
        with _transaction(rows):
            self._make_room(rows, needed)
            rows.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", (key, self._now(), value))
        self.nbytes = _nbytes(rows)

    def _make_room(self, rows: sqlite3.Connection, needed: int) -> None:
        """Remove the rows not used for longest, until `needed` bytes are free within the limit."""
        oldest = "DELETE FROM rows WHERE rowid = (SELECT rowid FROM rows ORDER BY used LIMIT 1)"
        while _nbytes(rows) + needed > self._limit:
            if not rows.execute(oldest).rowcount:
                break

    def _fit(self, rows: sqlite3.Connection) -> None:
        """At start: the limit may have been larger. Give back what is free."""
        with _transaction(rows):
            self._make_room(rows, needed=0)
        self.nbytes = _nbytes(rows)
        rows.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")  # `execute` frees one page


class _File:
    """One connection, of one thread; opened when it is needed. A file that is broken is begun anew."""

    def __init__(self, folder: Path, pause_s: float) -> None:
        self._folder = folder
        self._pause_s = pause_s
        self._rows: sqlite3.Connection | None = None
        self._path = folder / _FILE.format(1)
        self._file: os.stat_result | None = None
        self._is_broken = False
        self._paused_until = 0.0

    @property
    def is_paused(self) -> bool:
        """Whether the disk is left alone."""
        return time.monotonic() < self._paused_until

    def pause(self, reason: object, *, for_s: float | None = None) -> None:
        """Leave the disk alone, and say why. On any thread."""
        if self.is_paused:
            return
        for_s = self._pause_s if for_s is None else for_s
        self._paused_until = time.monotonic() + for_s
        _log.warning("the cache on disk fails, and is left alone for %.0f s: %s: %s", for_s, self._path, reason)

    def use(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """The work's result; None, and a line in the log, if the disk fails."""
        if self.is_paused:
            return None
        try:
            if self._rows is not None and not self._is_there():
                self.close()  # somebody has begun anew
            if self._rows is None:
                self._rows = self._opened()
                self._file = self._path.stat()
            return work(self._rows)
        except (sqlite3.Error, OSError) as error:
            if _code(error) == sqlite3.SQLITE_BUSY:
                self.pause("another process is writing to it", for_s=_BUSY_S)
                return None
            self.pause(error)
            self._is_broken = _code(error) in _BROKEN
            self.close()
            return None

    def _is_there(self) -> bool:
        """Whether the file that is open is still the one of its name: who deletes it does not tell us."""
        try:
            return self._file is not None and os.path.samestat(self._path.stat(), self._file)
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Until the next use."""
        rows, self._rows = self._rows, None
        if rows is not None:
            with suppress(sqlite3.Error):  # it is broken
                rows.close()

    def _opened(self) -> sqlite3.Connection:
        """Of the newest file; of a new one, if the newest is broken. Older ones go."""
        newest = self._newest()
        if self._is_broken and newest == self._path:
            newest = self._follow(newest)
        self._path, self._is_broken = newest, False
        try:
            rows = _connected(newest)
        except sqlite3.Error as error:
            if _code(error) not in _BROKEN:
                raise
            self._path = self._follow(newest)
            rows = _connected(self._path)
        if self._newest() != self._path:  # another has begun anew meanwhile
            rows.close()
            return self._opened()
        for path in self._files():  # only now: who finds none would begin with the first
            if _number(path) < _number(self._path):
                _remove(path)
        return rows

    def _follow(self, broken: Path) -> Path:
        _log.warning("%s is broken: it is begun anew", broken)
        return self._folder / _FILE.format(_number(broken) + 1)

    def _newest(self) -> Path:
        return max(self._files(), key=_number, default=self._folder / _FILE.format(1))

    def _files(self) -> list[Path]:
        """Ours alone: there may be others with names that are alike."""
        return [path for path in self._folder.glob(_FILE.format("*")) if path.name == _FILE.format(_number(path))]


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _number(path: Path) -> int:
    """Of one of our files; 0 of any other."""
    digits = path.stem.partition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _code(error: Exception) -> int:
    """SQLite's, without what it says beyond the kind; 0 if it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _connected(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)  # SQLite gives the files beside it the same mode
    rows = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        rows.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        rows.execute("PRAGMA auto_vacuum = INCREMENTAL")
        rows.execute("PRAGMA journal_mode = WAL")
        rows.execute("PRAGMA synchronous = NORMAL")
        rows.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        rows.executescript(_SCHEMA)
    except BaseException:
        rows.close()
        raise
    return rows


@contextmanager
def _transaction(rows: sqlite3.Connection) -> Iterator[None]:
    rows.execute("BEGIN IMMEDIATE")
    with rows:  # commits, or rolls back
        yield


def _nbytes(rows: sqlite3.Connection) -> int:
    """Of the file, without pages that are free."""
    pages, free = (rows.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
    return int((pages - free) * _PAGE_BYTES)


def _require_writable(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass
