"""Webdataset tars: the members of one sample stand together and have one name, up to its first dot."""

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from encoders.contract.errors import ImageError
from service.bulk.items import Item
from service.bulk.resume import BulkError
from service.bulk.sources.files import is_image
from service.bulk.sources.options import Options
from service.bulk.sources.place import Row, Skip, shown
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
    """members: suffix, in small letters -> content, as far as it is wanted."""

    key: str
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
        self._image, self._text, self._id, self._carried = (
            options.image, options.text, options.id, list(options.carried)
        )  # fmt: skip
        self.columns = pa.schema([(name, pa.string()) for name in self._carried])

    def parameters(self) -> Mapping[str, object]:
        """The tars with their sizes and times, and the suffixes."""
        return {
            "kind": "tars",
            "files": [{"name": shown(name), **self._places.of(name).stamp(name)} for name in self._names],
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
        wanted = [suffix for suffix in sample.suffixes if self._is_the_image(suffix)]
        if not wanted:
            return _missing(sample, f"no image .{self._image}" if self._image else "no image")
        return sample.members[wanted[0]]

    def _is_the_image(self, suffix: str) -> bool:
        if self._text:
            return False
        return suffix == self._image.lower() if self._image else is_image(f"x.{suffix}")

    def _samples(self, name: str, skip: Skip) -> Iterator[_Sample]:
        wanted = {each.lower() for each in (self._text, self._id, *self._carried) if each}
        sample: _Sample | None = None
        skipped = False
        try:
            with self._places.of(name).open(name) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
                for member in _members(tar):
                    found = _NAME.fullmatch(member.name)
                    if found is None or not member.isfile():
                        continue
                    if sample is None or sample.key != found["key"]:
                        if sample is not None and not skipped:
                            yield sample
                        sample, skipped = _Sample(found["key"]), skip.whole(1)
                    suffix = found["suffix"].lower()
                    is_wanted = suffix in wanted or (
                        self._is_the_image(suffix) and not any(map(self._is_the_image, sample.suffixes))
                    )
                    sample.suffixes.append(suffix)
                    if is_wanted and not skipped and suffix not in sample.members:
                        content = tar.extractfile(member)
                        assert content is not None, "it is a file"
                        sample.members[suffix] = content.read()
                whole = sample
                sample = None
            if whole is not None and not skipped:
                yield whole
        except (tarfile.TarError, EOFError, OSError) as error:
            raise BulkError(f"{shown(name)} cannot be read to its end: {reason(error)}.") from error


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
