"""A result in a folder of shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from service.bulk.errors import BulkError
from service.bulk.resume import RUN, Manifest, write_whole


class Folder:
    """A folder of shards; its unfinished ones are in OUT/_unfinished. Readers skip names that begin with `_`."""

    is_sharded: ClassVar[bool] = True
    most_ids: ClassVar[int | None] = None
    _patterns: ClassVar[Sequence[str]]
    """Of the names of its files."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def work(self) -> Path:
        """As Sink.work."""
        return self.out / "_unfinished"

    @property
    def ledger(self) -> Path | None:
        """As Sink.ledger."""
        return self.out / "errors"

    @property
    def _manifest(self) -> Path:
        return self.out / RUN

    def require(self, arrays: Sequence[str]) -> None:
        """As Sink.require."""
        if self.out.is_file():
            raise BulkError(f"{self.out} is a file, not a folder.")

    def recorded(self) -> Manifest | None:
        """As Sink.recorded."""
        self.require_ours()
        return Manifest.of_json(self._manifest.read_bytes()) if self._manifest.exists() else None

    def require_ours(self) -> None:
        """As Sink.require_ours."""
        if self._manifest.exists():
            return
        others = [path.name for path in self.out.glob("*") if not path.name.startswith("_")]
        if others:
            raise BulkError(f"{self.out} holds {sorted(others)[0]}, and no run: choose an empty folder or a new one.")

    def record(self, manifest: Manifest) -> None:
        """As Sink.record."""
        text = manifest.to_json()
        write_whole(self._manifest, lambda path: path.write_text(text), folder=self.work)

    def clear(self) -> None:
        """As Sink.clear."""
        for path in sorted((path for pattern in self._patterns for path in self.out.glob(pattern)), reverse=True):
            path.unlink()
        for part in self.work.glob("*.arrow"):
            part.unlink()
