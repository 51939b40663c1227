"""The room on the disk that a result takes."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from service.sizes import show_bytes

_LARGE = 100 * 10**9
"""Bytes from which a run says how large its result will be."""


@dataclass(frozen=True)
class Room:
    """Bytes. row: of one row. result: of all; most: on the disk while it is written; None if not known. free: there."""

    row: int
    result: int | None
    most: int | None
    free: int

    @property
    def warning(self) -> str | None:
        """What should be said before the run begins."""
        if self.result is None or self.most is None:
            return None
        if self.most > self.free:
            return (
                f"The result will have {show_bytes(self.result)} and needs {show_bytes(self.most)} while it is "
                f"written; {show_bytes(self.free)} are free."
            )
        return f"The result will have {show_bytes(self.result)}." if self.result > _LARGE else None

    @classmethod
    def of(cls, out: Path, rows: int | None, row_bytes: int, *, is_sharded: bool) -> "Room":
        """Without compression. One file is written from parts, which are as large as it; of a folder, a shard is."""
        result = None if rows is None else rows * row_bytes
        most = None if result is None else result if is_sharded else 2 * result
        return cls(row_bytes, result, most, shutil.disk_usage(_there(out.absolute())).free)


def _there(path: Path) -> Path:
    """The folder that is there already, of all above."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
