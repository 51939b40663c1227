"""Image files: each is an item, and its name the item's id."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from service.bulk.errors import BulkError
from service.bulk.items import Modality, Row
from service.bulk.sources.place import Disk, Skip, digest_of, shown
from service.bulk.sources.places import Places, row
from service.bulk.sources.retries import reason

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".heic", ".heif", ".hif", ".jxl"),
    }
)
"""Suffixes of images in a folder. A file named on the command line is tried whatever its suffix.

A format that needs an extra is among them: without it, the file is a failure that names the extra.
"""


def is_image(name: str) -> bool:
    """By its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Files as given, folders' images below them in sorted order, each once. Raises BulkError if one is not there."""
    disk, found = Disk(), dict[Path, None]()
    try:
        for path in paths:
            inside = map(Path, filter(is_image, disk.below(str(path)))) if disk.is_folder(str(path)) else [path]
            found.update(dict.fromkeys(inside))
    except OSError as error:
        raise BulkError(f"{shown(str(error.filename))}: {reason(error)}.") from error
    if not found:
        raise BulkError("There is no image in what was given.")
    return list(found)


class Files:
    """Images in order. Their names are all that is kept of them."""

    columns = pa.schema([])
    modality: Modality = "image"
    files: Sequence[str] = ()

    def __init__(self, names: Sequence[str], places: Places) -> None:
        self.total = len(names)
        self._names = names
        self._places = places

    def parameters(self) -> Mapping[str, Any]:
        """The number and the digest of the names."""
        return {"kind": "files", "count": self.total, "ids": digest_of(self._names)}

    def rows(self, skip: Skip) -> Iterator[Row]:
        """A file that is not there is an error of its item."""
        if skip.whole(self.total):
            return
        for index in range(skip.part(), self.total):
            name = self._names[index]
            yield row(shown(name), self._places.source(name))
