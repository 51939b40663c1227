"""Webdataset tars: the members of one sample stand together and have one name, up to its first dot."""

import lzma
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
_READ_BYTES = 1024 * 1024
_NAME = re.compile(r"(?P<key>(?:.*/)?[^/.][^/.]*)\.(?P<suffix>[^/]+)", re.DOTALL)
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_BROKEN_OFF = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


def is_tar(name: str) -> bool:
    """By its suffix."""
    return name.lower().endswith(_SUFFIXES)


@dataclass
class _Sample:
    """suffixes: of its members, in small letters; images: of those that are images.

    image: content of the first. members: content by suffix, of those that are wanted. fault: of one that is wanted.
    """

    key: str
    suffixes: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    image: bytes | None = None
    members: dict[str, bytes] = field(default_factory=dict)
    fault: str | None = None


class Tars:
    """The samples of tars, in order. The image is the one member with an image's suffix, or the one that is asked for.

    Columns are members by their suffix, as text: --columns json,txt. A sample without the member has null there. If no
    sample has it, that is told by `warn`.
    """

    total = None

    def __init__(self, names: Sequence[str], places: Places, options: Options, warn: Callable[[str], None]) -> None:
        if options.image and options.text:
            raise BulkError("--image-column and --text-column: a sample is an image or a text. Give one of them.")
        self.files = names
        self._places = places
        self._warn = warn
        self._image, self._text, self._id = map(_suffix, (options.image, options.text, options.id))
        self._carried = list(dict.fromkeys(each.removeprefix(".") for each in options.carried))
        self._wanted = {each.lower() for each in (self._text, self._id, *self._carried) if each}
        self.modality: Modality = "image" if self._text is None else "text"
        self.columns = pa.schema([(name, pa.string()) for name in self._carried])

    def parameters(self) -> Mapping[str, Any]:
        """The tars with their sizes and times, and the suffixes."""
        return {
            "kind": "tars",
            "files": {shown(name): self._places.of(name).stamp(name) for name in self.files},
            "image": self._image,
            "text": self._text,
            "id": self._id,
            "columns": self._carried,
        }

    def rows(self, skip: Skip) -> Iterator[Row]:
        """Samples before the start are passed by their headers. A tar that breaks off is told after its samples."""
        unseen = self._wanted - {(self._text or "").lower()}  # a sample without a text is an error
        for name in self.files:
            for sample in self._samples(name, skip, unseen):
                yield self._item(sample)
        if unseen:
            self._warn(f"No sample of the tars has a member {_listed(sorted(unseen))}.")

    def _item(self, sample: _Sample) -> Item:
        columns = {name: _text(sample.members.get(name.lower())) for name in self._carried}
        given = _text(sample.members.get(self._id.lower())) if self._id else None
        name = (given or "").strip() or shown(sample.key)
        if sample.fault:
            return Item(name, ImageError(f"The sample has {sample.fault}."), columns=columns)
        if self._text:
            text = _text(sample.members.get(self._text.lower()))
            if text is None:
                return Item(name, _missing(sample, f"no text .{self._text}"), columns=columns)
            return Item(name, text=text, columns=columns)
        return Item(name, self._source(sample), columns=columns)

    def _source(self, sample: _Sample) -> Source:
        if sample.image is None:
            return _missing(sample, f"no image .{self._image}" if self._image else "no image")
        if len(sample.images) > 1:
            return ImageError(
                f"The sample has {len(sample.images)} images, {_listed(sample.images)}: name one with --image-column. "
                "The name of a sample ends at its first dot."
            )
        return sample.image

    def _take(self, sample: _Sample, suffix: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Read the member if it is wanted. Of several images the first is read."""
        is_image, is_named = self._is_image(suffix), suffix in self._wanted
        if is_image or is_named:
            sample.fault = sample.fault or _fault(sample, suffix, member)
        sample.suffixes.append(suffix)
        if is_image:
            sample.images.append(suffix)
        if sample.fault or not (is_named or sample.images == [suffix]):
            return
        content = _content(tar, member)
        if is_named:
            sample.members[suffix] = content
        if sample.images == [suffix]:
            sample.image = content

    def _is_image(self, suffix: str) -> bool:
        if self._text:
            return False
        return suffix == self._image.lower() if self._image else is_image(f"x.{suffix}")

    def _samples(self, name: str, skip: Skip, unseen: set[str]) -> Iterator[_Sample]:
        key, sample = None, None  # sample: None of one that is left out
        try:
            with self._places.of(name).open(name) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
                for member in _members(tar, is_compressed=tar.fileobj is not file):
                    found = _NAME.fullmatch(member.name)
                    if found is None or not (member.isfile() or _is_link(member)):
                        continue
                    if found["key"] != key:
                        if sample is not None:
                            yield sample
                        key = found["key"]
                        sample = None if skip.whole(1) else _Sample(key)
                    suffix = found["suffix"].lower()
                    unseen.discard(suffix)
                    if sample is not None:
                        self._take(sample, suffix, tar, member)
                if sample is not None:
                    yield sample
        except _BROKEN_OFF as error:
            raise BulkError(f"{shown(name)} cannot be read to its end: {reason(error)}.") from error
        except (ValueError, OverflowError) as error:  # of a number in a header
            raise BulkError(f"{shown(name)} cannot be read to its end: a header in it is damaged.") from error


def _suffix(name: str | None) -> str | None:
    return name.removeprefix(".") if name else None


def _is_link(member: tarfile.TarInfo) -> bool:
    return member.islnk() or member.issym()


def _fault(sample: _Sample, suffix: str, member: tarfile.TarInfo) -> str | None:
    """Why the next member of the sample cannot be used. What a link leads to has been passed, and is not kept."""
    if suffix in sample.suffixes:
        return f"two members .{suffix}"
    if _is_link(member):
        target = shown(member.linkname)[:200]
        return f".{suffix} as a link to {target}: write the tar with tar --dereference --hard-dereference"
    return f".{suffix} as a sparse file, which is not read" if member.issparse() else None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """In blocks, since a damaged header may ask for more than there is."""
    file = tar.extractfile(member)
    assert file is not None, "it is a file"
    return b"".join(iter(partial(file.read, _READ_BYTES), b""))


def _members(tar: tarfile.TarFile, *, is_compressed: bool) -> Iterator[tarfile.TarInfo]:
    """The members, of which tarfile would keep all. Raises TarError for an end that is none: tarfile keeps silent.

    A compressed one is read to its end, where its checksum is.
    """
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if tar.offset < member.offset_data:  # tarfile would go round in circles
            raise tarfile.ReadError(f"a member's size is {member.size:,}")
        yield member
    assert tar.fileobj is not None, "it is open"
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(_BLOCK).strip(b"\0"):
        raise tarfile.ReadError(f"what stands at byte {tar.offset:,} is no member of a tar")
    while is_compressed and tar.fileobj.read(_READ_BYTES):
        pass


def _missing(sample: _Sample, what: str) -> ImageError:
    return ImageError(f"The sample has {what}: it has {_listed(sample.suffixes)}.")


def _listed(suffixes: Sequence[str]) -> str:
    return ", ".join(f".{suffix}" for suffix in suffixes[:20])


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "backslashreplace")
