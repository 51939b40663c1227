"""A result in a single file."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from service.bulk.errors import BulkError
from service.bulk.resume import MANIFEST, UNFINISHED, Manifest, beside, write_whole
from service.bulk.sinks.sink import Counts


class OneFile:
    """A single file; its unfinished run is in OUT.parts."""

    is_sharded: ClassVar[bool] = False
    most_ids: ClassVar[int | None] = None

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def work(self) -> Path:
        """As Sink.work."""
        return beside(self.out, UNFINISHED)

    @property
    def ledger(self) -> Path | None:
        """As Sink.ledger."""
        return beside(self.out, ".errors.jsonl")

    def require(self, arrays: Sequence[str]) -> None:
        """As Sink.require."""
        pass

    def recorded(self) -> Manifest | None:
        """As Sink.recorded."""
        return Manifest.of_json(self._manifest.read_bytes()) if self._manifest.exists() else self._of_result()

    @property
    def _manifest(self) -> Path:
        return self.work / MANIFEST

    def _of_result(self) -> Manifest | None:
        if self.out.exists():
            raise BulkError(f"{self.out} exists already: --restart writes it anew.")
        return None

    def record(self, manifest: Manifest) -> None:
        """As Sink.record."""
        text = manifest.to_json()
        write_whole(self._manifest, lambda path: path.write_text(text), folder=self.work)

    def require_ours(self) -> None:
        """As Sink.require_ours. The result stays until the new one takes its place."""

    def whole(self, rows: int) -> Counts:
        """Of the result, which is there whole and has so many rows."""
        return Counts(rows, len(self.ledger.read_text().splitlines()) if self.ledger and self.ledger.exists() else 0)

    def finished(self, number: int) -> Counts | None:
        """As Sink.finished."""
        return None

    def clear(self) -> None:
        """The result stays until the new one takes its place."""
        self._manifest.unlink(missing_ok=True)
        for part in self.work.glob("*.arrow"):
            part.unlink()
