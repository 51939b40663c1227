"""Where a source's files are: on this machine, in a bucket, behind a web server. Knows no kind of file."""

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from threading import Event
from typing import BinaryIO, Protocol

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError


class Place(Protocol):
    """A file system. Its names are paths on this machine, or whole URLs. All of it raises BulkError or OSError."""

    def is_folder(self, name: str) -> bool:
        """Whether files may lie below it. Raises BulkError if nothing is there."""

    def below(self, folder: str) -> Iterator[str]:
        """The files below a folder, at any depth, in the order of their names, folder by folder."""

    def matching(self, pattern: str) -> Iterator[str]:
        """The files that a glob means, in the order of their names; ** stands for folders at any depth."""

    def stamp(self, name: str) -> Mapping[str, object]:
        """Numbers and words that change when a file is written anew, as JSON has them."""

    def open(self, name: str) -> BinaryIO:
        """The file, to be read at any offset."""

    def join(self, file: str, path: str) -> str | None:
        """The file that `path` means where it stands in `file`; None if that is outside the folder of `file`."""


class Server(Place, Protocol):
    """A place whose files are fetched: a bucket, a web server."""

    def image(self, name: str, stop: Event) -> bytes | ImageError:
        """The whole file, or the error that stands for it, after as many tries as it takes until the event is set."""


class Disk:
    """This machine's files."""

    def is_folder(self, name: str) -> bool:
        """Whether it is a folder."""
        if not os.path.lexists(name):
            raise BulkError(f"{shown(name)} is not there.")
        return os.path.isdir(name)

    def below(self, folder: str) -> Iterator[str]:
        """Links to folders are not followed, and pipes and devices left out: one may never end.

        One folder's names are in memory at a time.
        """
        with os.scandir(folder) as entries:
            inside = sorted((entry.name, entry.is_dir(follow_symlinks=False), _is_file(entry)) for entry in entries)
        for name, is_folder, is_file in inside:
            if is_folder:
                yield from self.below(os.path.join(folder, name))
            elif is_file:
                yield os.path.join(folder, name)

    def matching(self, pattern: str) -> Iterator[str]:
        """As a shell: hidden files only where the pattern names them. No pipe and no device."""
        found = {name for name in glob.iglob(pattern, recursive=True) if os.path.isfile(name) or _is_broken(name)}
        return iter(sorted(found, key=lambda name: name.split(os.sep)))

    def stamp(self, name: str) -> Mapping[str, object]:
        """Its size and the time of its last change."""
        about = os.stat(name)
        return {"bytes": about.st_size, "changed": about.st_mtime_ns}

    def open(self, name: str) -> BinaryIO:
        """As it is on the disk."""
        return open(name, "rb")

    def join(self, file: str, path: str) -> str | None:
        """Links are followed before it is judged: one that leads out of the folder is outside."""
        folder = os.path.dirname(file)
        real = os.path.realpath(folder)
        joined = os.path.join(folder, path)
        if "\0" in path or os.path.commonpath([real, os.path.realpath(joined)]) != real:
            return None
        return joined


def is_read_once(name: str) -> bool:
    """Whether it is a pipe, a socket or a device of this machine."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_file(entry: "os.DirEntry[str]") -> bool:
    """A broken link is one, too: it is an error of its item."""
    try:
        return entry.is_file() or (entry.is_symlink() and _is_broken(entry.path))
    except OSError:  # a link to itself
        return True


def _is_broken(link: str) -> bool:
    return not os.path.exists(link)


class Skip:
    """How many rows are yet to be left out: those before the first one that is asked for."""

    def __init__(self, rows: int) -> None:
        self._left = rows

    def whole(self, rows: int) -> bool:
        """Whether the next `rows` are left out altogether; then they are counted."""
        if self._left < rows:
            return False
        self._left -= rows
        return True

    def part(self) -> int:
        """How many of the next rows are left out, where not all of them are; they are counted."""
        rows, self._left = self._left, 0
        return rows


def shown(name: str) -> str:
    """The name as text that every format can hold; bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def digest_of(names: Iterable[str]) -> str:
    """Of names in their order."""
    digest = blake2b(digest_size=16)
    for name in names:
        encoded = name.encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(8, "little"))  # so that no two lists are the same bytes
        digest.update(encoded)
    return digest.hexdigest()
