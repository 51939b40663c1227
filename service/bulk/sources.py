"""The image files of a bulk run."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from service.bulk.errors import BulkError
from service.bulk.items import Item

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".heic", ".heif", ".hif", ".jxl"),
    }
)
"""Suffixes of images in a folder. A file named on the command line is tried whatever its suffix.

A format that needs an extra is among them: without it, the file is a failure that names the extra.
"""


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Files as given, folders' images below them in sorted order, each once. Raises BulkError if one is not there."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = (
                Path(folder, name)
                for folder, _, names in os.walk(path, followlinks=False)
                for name in names
                if os.path.splitext(name)[1].lower() in SUFFIXES
            )
            found.update(dict.fromkeys(sorted(inside)))
        elif path.exists():
            found[path] = None
        else:
            raise BulkError(f"{path} is not there.")
    if not found:
        raise BulkError("There is no image in what was given.")
    return list(found)


def shown(path: Path) -> str:
    """The path as text that every format can hold; bytes that are no UTF-8 are escaped."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Files:
    """Files on this machine, as Inputs."""

    paths: Sequence[Path]

    @property
    def columns(self) -> pa.Schema:
        """None."""
        return pa.schema([])

    @property
    def total(self) -> int:
        """How many they are."""
        return len(self.paths)

    def parameters(self) -> Mapping[str, object]:
        """Their number and a digest of their names in order."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(shown(path).encode() + b"\0")
        return {"count": len(self.paths), "digest": digest.hexdigest()[:16]}

    def items(self, start: int) -> Iterator[Item]:
        """Each named by its path."""
        return (Item(shown(path), path) for path in self.paths[start:])
