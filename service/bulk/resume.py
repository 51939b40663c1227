"""An unfinished bulk run on disk: numbered parts and the run that they belong to. Knows files, no encoder.

    OUT.parts/manifest.json     the run's parameters; a run with others refuses to continue it
    OUT.parts/files.json        the list of files, in order
    OUT.parts/000000.safetensors, 000001.safetensors, ...

A part covers files [start, stop) and holds a row for each that could be encoded, a reason for each that could not.
Everything is written beside its name and renamed, so what is there is whole, whenever the run was killed.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

Array = NDArray[Any]

_VERSION = 1


class BulkError(Exception):
    """A bulk run that cannot start or go on, in words for who started it."""


@dataclass(frozen=True)
class Failure:
    """A file without a row: its path, the error's class and its message."""

    path: str
    error: str
    reason: str


@dataclass(frozen=True)
class Part:
    """Consecutive files' results. arrays: name -> blocks [n, ...] whose rows belong to files `rows`, in order."""

    start: int
    stop: int
    rows: Sequence[int] = ()
    failures: Sequence[Failure] = ()
    arrays: Mapping[str, Sequence[Array]] = field(default_factory=dict)

    def and_then(
        self, *, stop: int, rows: Sequence[int], arrays: Mapping[str, Array], failures: Sequence[Failure]
    ) -> "Part":
        """This part with the files up to `stop`. A new value: whoever is interrupted has the one or the other."""
        blocks = {name: [*self.arrays.get(name, ()), block] for name, block in arrays.items()} if rows else self.arrays
        return Part(self.start, stop, [*self.rows, *rows], [*self.failures, *failures], blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows held."""
        return sum(block.nbytes for blocks in self.arrays.values() for block in blocks)


class Parts:
    """The folder of one run, held by one process at a time.

    stop: the first file not covered yet. rows, failures: of all parts; rows are indices into `files`.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.folder = folder
        self.files = files
        self._names = sorted(path.name for path in folder.glob("[0-9]*.safetensors"))
        self.stop = 0
        self.rows: list[int] = []
        self.failures: list[Failure] = []
        for name in self._names:
            part = self._read(name, arrays=False)
            if part.start != self.stop:
                raise BulkError(
                    f"{folder / name} does not follow the part before it: delete {folder} or use --restart."
                )
            self._count(part)

    def append(self, part: Part) -> None:
        """Write the next part; one that covers nothing more than is written already is ignored."""
        if part.stop <= self.stop:
            return
        name = f"{len(self._names):06d}.safetensors"
        tensors = {key: np.concatenate(blocks) for key, blocks in part.arrays.items()}
        about = {
            "start": str(part.start),
            "stop": str(part.stop),
            "failures": json.dumps([asdict(failure) for failure in part.failures]),
        }
        write_whole(
            self.folder / name, lambda path: save_file({**tensors, "rows": np.array(part.rows, np.int64)}, path, about)
        )
        self._names.append(name)
        self._count(part)

    def __iter__(self) -> Iterator[Part]:
        """The parts in order, one in memory at a time; each array is one block."""
        return (self._read(name) for name in self._names)

    def remove(self) -> None:
        """Forget the run."""
        shutil.rmtree(self.folder)

    def _count(self, part: Part) -> None:
        self.rows += part.rows
        self.failures += part.failures
        self.stop = part.stop

    def _read(self, name: str, *, arrays: bool = True) -> Part:
        with safe_open(self.folder / name, framework="numpy") as file:
            about = file.metadata()
            return Part(
                start=int(about["start"]),
                stop=int(about["stop"]),
                rows=file.get_tensor("rows").tolist(),
                failures=[Failure(**failure) for failure in json.loads(about["failures"])],
                arrays={key: [file.get_tensor(key)] for key in file.keys() if key != "rows"} if arrays else {},  # noqa: SIM118  # not a dict
            )


@contextmanager
def opened(out: Path, *, run: Mapping[str, object], files: Sequence[str], restart: bool) -> Iterator[Parts]:
    """The parts of the run that writes `out`: those an earlier, equal run left, or none.

    Raises BulkError if `out` is there already, the parts are another run's, or another process is writing them.
    """
    folder = beside(out, ".parts")
    if out.exists() and not folder.exists() and not restart:
        raise BulkError(f"{out} exists already: --restart writes it anew.")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BulkError(f"Another process is writing {folder}.") from error
        manifest = folder / "manifest.json"
        if restart:
            manifest.unlink(missing_ok=True)
        if manifest.exists():
            _check(folder, run=run, files=files)
        else:
            for old in folder.glob("[0-9]*.safetensors"):
                old.unlink()
            write_whole(folder / "files.json", lambda path: path.write_text(json.dumps(list(files))))
            text = json.dumps({"version": _VERSION, "run": run}, indent=2)
            write_whole(manifest, lambda path: path.write_text(text))
        yield Parts(folder, files)


def _check(folder: Path, *, run: Mapping[str, object], files: Sequence[str]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    before = manifest["run"] if manifest["version"] == _VERSION else {}
    now = json.loads(json.dumps(run))
    changes = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in now if before.get(key) != now.get(key)]
    recorded = json.loads((folder / "files.json").read_text())
    if recorded != list(files):
        old, new = set(recorded), set(files)
        changes.append(
            f"the files changed ({len(new - old)} new, {len(old - new)} gone)" if old != new else "the files' order"
        )
    if changes:
        raise BulkError(
            f"{folder} holds an unfinished run with other parameters: {'; '.join(changes)}. "
            f"Give the same ones to continue it, or delete {folder} or use --restart to begin anew."
        )


def beside(path: Path, suffix: str) -> Path:
    """`path` with `suffix` after its whole name: out.npy -> out.npy.parts."""
    return path.with_name(path.name + suffix)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in place in one step; flushed to the disk before."""
    new = beside(path, ".new")
    write(new)
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    new.replace(path)
