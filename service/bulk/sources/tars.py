"""Webdataset tars: the members of one sample stand together and have one name, up to its first dot."""

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError
from service.bulk.items import Item, Modality, Row
from service.bulk.sources.files import is_image
from service.bulk.sources.options import Options
from service.bulk.sources.place import Skip, shown
from service.bulk.sources.places import Places
from service.bulk.sources.retries import reason
from service.engine.values import Source

_BLOCK = 512
_NAME = re.compile(r"(?P<key>(?:.*/)?[^/.][^/.]*)\.(?P<suffix>[^/]+)", re.DOTALL)


def is_tar(name: str) -> bool:
    """By its suffix."""
    return name.lower().endswith((".tar", ".tar.gz", ".tgz"))


@dataclass
class _Sample:
    """suffixes: of its members, in small letters. members: content by suffix, of those that are wanted."""

    key: str
    image: bytes | None = None
    suffixes: list[str] = field(default_factory=list)
    members: dict[str, bytes] = field(default_factory=dict)


class Tars:
    """The samples of tars, in order. The image is the member with an image's suffix, or the one that is asked for.

    Columns are members by their suffix, as text: --columns json,txt. A sample without the member has null there.
    """

    total = None

    def __init__(self, names: Sequence[str], places: Places, options: Options) -> None:
        if options.image and options.text:
            raise BulkError("--image-column and --text-column: a sample is an image or a text. Give one of them.")
        self._names = names
        self._places = places
        self._image, self._text, self._id = options.image, options.text, options.id
        self._carried = list(options.carried)
        self._wanted = {each.lower() for each in (self._text, self._id, *self._carried) if each}
        self.modality: Modality = "image" if self._text is None else "text"
        self.columns = pa.schema([(name, pa.string()) for name in self._carried])

    def parameters(self) -> Mapping[str, Any]:
        """The tars with their sizes and times, and the suffixes."""
        return {
            "kind": "tars",
            "files": {shown(name): self._places.of(name).stamp(name) for name in self._names},
            "image": self._image,
            "text": self._text,
            "id": self._id,
            "columns": self._carried,
        }

    def rows(self, skip: Skip) -> Iterator[Row]:
        """Samples before the start are passed by their headers. A tar that breaks off is told after its samples."""
        for name in self._names:
            for sample in self._samples(name, skip):
                yield self._item(sample)

    def _item(self, sample: _Sample) -> Item:
        columns = {name: _text(sample.members.get(name.lower())) for name in self._carried}
        given = _text(sample.members.get(self._id.lower())) if self._id else None
        name = given or shown(sample.key)
        if self._text:
            text = _text(sample.members.get(self._text.lower()))
            if text is None:
                return Item(name, _missing(sample, f"no text .{self._text}"), columns=columns)
            return Item(name, text=text, columns=columns)
        return Item(name, self._source(sample), columns=columns)

    def _source(self, sample: _Sample) -> Source:
        if sample.image is None:
            return _missing(sample, f"no image .{self._image}" if self._image else "no image")
        return sample.image

    def _take(self, sample: _Sample, suffix: str, read: Callable[[], bytes]) -> None:
        """Read the member if it is wanted. Of two images the first counts, and so it is with two of one name."""
        sample.suffixes.append(suffix)
        if suffix in self._wanted and suffix not in sample.members:
            sample.members[suffix] = read()
        if sample.image is None and self._is_image(suffix):
            sample.image = sample.members.get(suffix) or read()

    def _is_image(self, suffix: str) -> bool:
        if self._text:
            return False
        return suffix == self._image.lower() if self._image else is_image(f"x.{suffix}")

    def _samples(self, name: str, skip: Skip) -> Iterator[_Sample]:
        key, sample = None, None  # sample: None of one that is left out
        try:
            with self._places.of(name).open(name) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
                for member in _members(tar):
                    found = _NAME.fullmatch(member.name)
                    if found is None or not member.isfile():
                        continue
                    if found["key"] != key:
                        if sample is not None:
                            yield sample
                        key = found["key"]
                        sample = None if skip.whole(1) else _Sample(key)
                    if sample is not None:
                        self._take(sample, found["suffix"].lower(), partial(_content, tar, member))
                if sample is not None:
                    yield sample
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise BulkError(f"{shown(name)} cannot be read to its end: {reason(error)}.") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None, "it is a file"
    return content.read()


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members, of which tarfile would keep all. Raises TarError for an end that is none: tarfile keeps silent."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        yield member
    assert tar.fileobj is not None, "it is open"
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(_BLOCK).strip(b"\0"):
        raise tarfile.ReadError(f"what stands at byte {tar.offset:,} is no member of a tar")


def _missing(sample: _Sample, what: str) -> ImageError:
    has = ", ".join(f".{suffix}" for suffix in sample.suffixes[:20])
    return ImageError(f"The sample has {what}: it has {has}.")


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "backslashreplace")
