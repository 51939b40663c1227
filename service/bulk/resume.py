"""An unfinished bulk run on disk: whose it is, and the parts of it that are done. Knows files, no encoder.

    manifest         the run's parameters; a run with others refuses to continue it
    WORK/000000000000-000000004096.arrow, ...    parts: the rows of items [start, stop), as Arrow IPC has them
    WORK/lock        held by the process that writes

Everything is written beside its name and renamed, so what is there is whole, whenever the run was killed.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from service.bulk.errors import BulkError

MANIFEST = "manifest.json"
"""In the folder of what is unfinished, if the result is one file."""
RUN = "_run.json"
"""In the folder of a result of shards: the same."""
UNFINISHED = ".parts"
"""After the name of a result that is one file: the folder of what is unfinished."""
_VERSION = 2
_LONGEST, _MOST = 60, 5
"""Characters of a parameter, and parameters, that a refusal shows."""


@dataclass(frozen=True)
class Manifest:
    """Whose result it is. shard_rows: 0 for one file. rows: how many it has; None until the run has ended."""

    parameters: Mapping[str, object]
    shard_rows: int
    rows: int | None = None

    def to_json(self) -> str:
        """For a file, or for the metadata of one."""
        about = {"version": _VERSION, "rows": self.rows, "shard_rows": self.shard_rows, "parameters": self.parameters}
        return json.dumps(about, indent=2)

    @classmethod
    def of_json(cls, text: str | bytes) -> "Manifest":
        """What `to_json` wrote. Raises BulkError for another version's, and for what is damaged."""
        try:
            about = json.loads(text)
            if about["version"] != _VERSION:
                raise BulkError("Another version of visiontower has begun to write here: --restart begins anew.")
            return cls(dict(about["parameters"]), about["shard_rows"], about["rows"])
        except (ValueError, KeyError, TypeError) as error:
            raise BulkError("What says whose result this is, is damaged: --restart begins anew.") from error

    def changes(self, now: "Manifest") -> list[str]:
        """How another run differs from this one, by name: the first few differences, and how many more there are."""
        then, these = json.loads(self.to_json()), json.loads(now.to_json())
        was, now_is = dict(_flat(then["parameters"])), dict(_flat(these["parameters"]))
        changed = [
            f"{key} was {_shown(was.get(key))}, is {_shown(now_is.get(key))}"
            for key in dict.fromkeys([*now_is, *was])
            if was.get(key) != now_is.get(key)
        ]
        if then["shard_rows"] != these["shard_rows"]:
            changed.append(f"shard_rows was {then['shard_rows']}, is {these['shard_rows']}")
        more = len(changed) - _MOST
        return [*changed[:_MOST], f"and {more:,} more"] if more > 0 else changed

    def ended(self, *, rows: int) -> "Manifest":
        """The manifest of the whole result."""
        return replace(self, rows=rows)


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """What stands in objects and lists, each by all names that lead to it; places in a list are counted from 1."""
    inside: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value, 1)
    else:
        yield name, value
    for key, each in inside:
        yield from _flat(each, f"{name} {key}".lstrip())


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


@dataclass(frozen=True)
class Part:
    """The rows of the items [start, stop), in order, on disk or not yet. failed: how many of them have no arrays."""

    start: int
    stop: int
    failed: int
    path: Path

    def tables(self) -> Iterator[pa.Table]:
        """Its rows; the file is mapped, so that only what is used of it is read."""
        with pa.memory_map(str(self.path)) as file:
            yield pa.ipc.open_file(file).read_all()


class Parts:
    """The parts of what is not in the result yet; those of it that `covered` items are in are dropped.

    stop: the first item that is neither in the result nor in a part. Raises BulkError if a part is missing.
    """

    def __init__(self, folder: Path, *, covered: int) -> None:
        self.folder = folder
        self.stop = covered
        self._parts: list[Part] = []
        for path in sorted(folder.glob("[0-9]*-[0-9]*.arrow")):
            start, stop = map(int, path.stem.split("-"))
            if stop <= covered:  # the run ended between the result's last step and this one
                path.unlink()
                continue
            if start != self.stop:
                raise BulkError(f"{path} does not follow the part before it: use --restart to begin anew.")
            self._append(Part(start, stop, _failed(path), path))

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write the next part. Raises BulkError if there is no room for it."""
        stop = self.stop + sum(map(len, batches))
        path = self.folder / f"{self.stop:012d}-{stop:012d}.arrow"

        def write(new: Path) -> None:
            with pa.OSFile(str(new), "wb") as file, pa.ipc.new_file(file, batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)

        write_whole(path, write, folder=self.folder)
        self._append(Part(self.stop, stop, sum(batch["error"].is_valid().sum().as_py() for batch in batches), path))

    def drop(self, *, stop: int) -> None:
        """The items before `stop` are in the result: remove their parts."""
        while self._parts and self._parts[0].stop <= stop:
            self._parts.pop(0).path.unlink()

    def between(self, start: int, stop: int) -> list[Part]:
        """The parts of these items."""
        return [part for part in self._parts if start <= part.start and part.stop <= stop]

    @property
    def failed(self) -> int:
        """Rows without arrays in the parts."""
        return sum(part.failed for part in self._parts)

    def _append(self, part: Part) -> None:
        self._parts.append(part)
        self.stop = part.stop


def _failed(path: Path) -> int:
    with pa.memory_map(str(path)) as file:
        errors = pa.ipc.open_file(file).read_all()["error"]
        return len(errors) - int(errors.null_count)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder of a run, for this process alone; what a killed one left half written is removed.

    Raises BulkError if another process has it.
    """
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BulkError(f"Another process is writing {folder}.") from error
        for half in folder.glob("*.new"):
            _remove(half)
        for before in folder.glob("*.old"):
            _restore(before, folder.parent / before.stem)
        yield


def forget(folder: Path) -> None:
    """Remove the folder of a run that has ended; what says that it has, last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
        path.unlink()
    folder.rmdir()


def beside(path: Path, suffix: str) -> Path:
    """`path` with `suffix` after its whole name: out.npy -> out.npy.parts."""
    return path.with_name(path.name + suffix)


def write_whole(path: Path, write: Callable[[Path], object], *, folder: Path) -> None:
    """Let `write` fill a file or a folder in `folder`, then put it in place whole; flushed to the disk before.

    A file takes the place of another in one step. Of a folder the one before is put aside first: `held` puts it back if
    the run is killed between. Raises BulkError if it cannot be written; then `path` is as before.
    """
    new, old = folder / f"{path.name}.new", folder / f"{path.name}.old"
    with told(path):
        try:
            write(new)
            for each in [new, *new.rglob("*")]:
                _flush(each)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                path.rename(old)
            new.replace(path)
        except BaseException:
            _remove(new)  # it may be what fills the disk
            if old.exists():
                _restore(old, path)
            raise
        _flush(path.parent)
        if old.exists():
            _remove(old)


def _flush(path: Path) -> None:
    """To the disk: what is in a file, or the names in a folder."""
    entry = os.open(path, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def _remove(path: Path) -> None:
    """If it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _restore(old: Path, path: Path) -> None:
    """Put a folder back, unless the one that follows it is in its place."""
    if path.exists():
        _remove(old)
    else:
        old.rename(path)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """An error of the disk in the block, as a BulkError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = "Make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "Mend it"
        raise BulkError(
            f"{path} could not be written: {reason}. What is done is kept. {advice}; then the same command continues."
        ) from error
