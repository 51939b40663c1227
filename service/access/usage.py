"""What each key has used: requests of the last second, images of the day. One count for all processes of a machine.

SQLite keeps it, in a file that may outlive the server. What one statement says holds at once and for all processes.
Nothing is flushed to the disk, so that a count costs microseconds; if the machine fails, its last seconds are lost.
"""

import math
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic_settings import SettingsError

_OPENED_S = 5.0
_BUSY_S = 0.25
"""Another process may hold the file for so long. It does so for microseconds, unless it has been stopped in them."""
_SKEW_S = 5.0
"""A due time that is further away was written before the clock was set back: it does not count."""
_ROUNDED_S = 1e-5
"""Seconds since 1970 in 64 bits are no finer than 2e-7: who comes each gap is not to be refused for that."""
_KEPT_DAYS = 31
_TABLES = """
CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, due REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (key TEXT, day TEXT, number INTEGER NOT NULL, PRIMARY KEY (key, day)) WITHOUT ROWID;
"""
_REQUEST = """
INSERT INTO requests VALUES (:key, :now + :gap)
ON CONFLICT (key) DO UPDATE SET due = max(:now, iif(due > :now + :most + :skew, 0, due)) + :gap
WHERE iif(due > :now + :most + :skew, 0, due) + :gap <= :now + :most
"""
_IMAGES = """
INSERT INTO images SELECT :key, :day, :number WHERE :number <= :limit
ON CONFLICT (key, day) DO UPDATE SET number = number + :number WHERE number + :number <= :limit
"""


class Usage:
    """The counts of all keys. clock: seconds since 1970.

    Every call may raise sqlite3.Error: the disk may be full.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """path: None keeps the counts in this process. Raises SettingsError for a file that cannot be used."""
        self._clock = clock
        try:
            self._database = sqlite3.connect(
                ":memory:" if path is None else path, timeout=_OPENED_S, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL").fetchone()
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute(f"PRAGMA busy_timeout = {int(1000 * _BUSY_S)}")
            self._database.executescript(_TABLES)
            self._database.execute("DELETE FROM images WHERE day < ?", [_day(self._now() - timedelta(_KEPT_DAYS))])
        except sqlite3.Error as error:
            raise SettingsError(f"keys_usage {path} cannot keep what keys have used: {error}.") from error

    def close(self) -> None:
        """Nothing is counted after it."""
        self._database.close()

    def request(self, key: str, *, per_second: float) -> float:
        """Count a request, if as many a second leave room for it. Gives 0, or in how many seconds there will be room.

        A second's requests may come at once; after that one comes each time that a gap has passed (the generic cell
        rate algorithm).
        """
        now, gap = self._clock(), 1 / per_second
        most = max(1.0, gap) + _ROUNDED_S
        values = {"key": key, "now": now, "gap": gap, "most": most, "skew": _SKEW_S}
        if self._database.execute(_REQUEST, values).rowcount:
            return 0.0
        (due,) = self._database.execute("SELECT due FROM requests WHERE key = ?", [key]).fetchone()
        return max(0.001, float(due) + gap - most - now)

    def images(self, key: str, number: int, *, per_day: int) -> str | None:
        """Count images of today, if there are so many left. Gives the day for which they count."""
        day = _day(self._now())
        values = {"key": key, "day": day, "number": number, "limit": per_day}
        return day if self._database.execute(_IMAGES, values).rowcount else None

    def give_back(self, key: str, number: int, *, day: str) -> None:
        """Images that were counted for this day, and are not to be."""
        self._database.execute("UPDATE images SET number = number - ? WHERE key = ? AND day = ?", [number, key, day])

    def today(self, key: str) -> int:
        """Images of today."""
        row = self._database.execute(
            "SELECT number FROM images WHERE key = ? AND day = ?", [key, _day(self._now())]
        ).fetchone()
        return 0 if row is None else int(row[0])

    def seconds_left(self) -> int:
        """Until the next day begins."""
        now = self._now()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        return math.ceil((midnight - now).total_seconds())

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _day(now: datetime) -> str:
    return f"{now:%Y-%m-%d}"
