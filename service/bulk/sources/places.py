"""The place of a name, by its scheme. Buckets and web servers are reached only if they are named."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event

from encoders.contract.errors import ImageError
from service.bulk.errors import NoSuchPlace
from service.bulk.items import Item, Pending, Row
from service.bulk.sources.place import Disk, Place, Server
from service.bulk.sources.retries import Patience
from service.engine.values import Source

_BUCKETS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


def scheme_of(name: str) -> str:
    """What stands before ://, in lower case; empty for a path on this machine."""
    scheme, mark, _ = name.partition("://")
    return scheme.lower() if mark and scheme.replace("+", "").replace("-", "").isalnum() else ""


class Places:
    """One place a scheme; a bucket has its own, since it has its own region.

    Pickled, it is the one of the process that unpickles it: connections stay where they are.
    """

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._disk = Disk()
        self._servers: dict[tuple[str, str], Server] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return _of_process, (self._patience,)

    def of(self, name: str) -> Place:
        """Raises BulkError if nothing here knows the scheme, or its library is missing."""
        return self.server(name) if scheme_of(name) else self._disk

    def source(self, name: str) -> "Remote | Path | ImageError":
        """The file as an image. If it is not there, or its URL leads nowhere, that is an error of the image.

        Raises BulkError if a library is missing, or the bucket.
        """
        if not scheme_of(name):
            return Path(name)
        try:
            self.server(name)
        except NoSuchPlace as error:
            return ImageError(str(error))
        return Remote(name, self)

    def server(self, name: str) -> Server:
        """The place of a URL. Raises as `of`."""
        scheme = scheme_of(name)
        bucket = name.split("/", 3)[2] if scheme in _BUCKETS else ""
        if (scheme, bucket) not in self._servers:
            self._servers[scheme, bucket] = self._reach(scheme, bucket)
        return self._servers[scheme, bucket]

    def _reach(self, scheme: str, bucket: str) -> Server:
        if scheme in ("http", "https"):
            from service.bulk.sources.web import Web

            return Web(self._patience)
        from service.bulk.sources.bucket import Bucket, file_system

        return Bucket(file_system(_BUCKETS.get(scheme, scheme), bucket), self._patience)


@dataclass(frozen=True)
class Remote:
    """An image on a server."""

    name: str
    places: Places

    def read(self, stop: Event) -> bytes | ImageError:
        """As Unread."""
        return self.places.server(self.name).image(self.name, stop)


def row(name: str, source: Source | Remote, columns: Mapping[str, object] | None = None) -> Row:
    """An image's item; pending if its source is remote."""
    if isinstance(source, Remote):
        return Pending(Item(name, columns=columns or {}), source)
    return Item(name, source, columns=columns or {})


@cache
def _of_process(patience: Patience) -> Places:
    return Places(patience)
