"""Texts, one a line. A line is an item, an empty one too, and its own id."""

import codecs
import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import blake2b
from typing import Any, BinaryIO
from weakref import finalize

import pyarrow as pa

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError
from service.bulk.items import Item, Modality, Row
from service.bulk.sources.place import Skip, is_read_once, shown
from service.bulk.sources.places import Places
from service.bulk.sources.retries import reason


class Texts:
    """The lines of a file, a pipe or standard input. They are counted at once, and read again as they are wanted.

    standard_input: what `-` means. What is read once is kept in a temporary file.
    """

    columns = pa.schema([])
    modality: Modality = "text"
    files: Sequence[str] = ()

    def __init__(self, name: str, places: Places, standard_input: BinaryIO) -> None:
        self._name = name
        self._places = places
        self._copy: BinaryIO | None = None
        if name == "-" or is_read_once(name):
            self._copy = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this
            finalize(self, self._copy.close)
            with nullcontext(standard_input) if name == "-" else open(name, "rb") as source:
                shutil.copyfileobj(source, self._copy)
        digest = blake2b(digest_size=16)
        self.total = 0
        with self._opened() as file:
            for line in file:
                self.total += 1
                digest.update(line)
        self._digest = digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        if self._copy is not None:
            raise BulkError("A pipe is on this machine alone: write the texts to a file that all machines read.")
        return self.__dict__

    def parameters(self) -> Mapping[str, Any]:
        """The number of lines, and the digest of the file."""
        return {"kind": "texts", "count": self.total, "ids": self._digest}

    def rows(self, skip: Skip) -> Iterator[Row]:
        """Each line without its end."""
        if skip.whole(self.total):
            return
        start = skip.part()
        with self._opened() as file:
            for number, line in enumerate(file):
                if number >= start:
                    yield _item(number, _stripped(line if number else line.removeprefix(codecs.BOM_UTF8)))

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self._copy is not None:
            self._copy.seek(0)
            yield self._copy
            return
        try:
            with self._places.of(self._name).open(self._name) as file:
                yield file
        except OSError as error:
            raise BulkError(f"{shown(self._name)} cannot be read: {reason(error)}.") from error


def _item(number: int, line: bytes) -> Item:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return Item(line.decode("utf-8", "backslashreplace"), ImageError(f"Line {number + 1:,} is not UTF-8."))
    return Item(text, text=text)


def lines_of(name: str, places: Places, standard_input: BinaryIO) -> Iterator[str]:
    """The names in a list, one a line, as the file system spells them; empty lines name nothing.

    In a list with NULs, as `find -print0` writes them, they stand where lines end.
    """
    try:
        with places.of(name).open(name) if name != "-" else io.BytesIO(standard_input.read()) as file:
            content = file.read().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise BulkError(f"{shown(name)} cannot be read: {reason(error)}.") from error
    names = content.split(b"\0") if b"\0" in content else map(_stripped, content.split(b"\n"))
    return (each.decode("utf-8", "surrogateescape") for each in names if each)


def _stripped(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")
