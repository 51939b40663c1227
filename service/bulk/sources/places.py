"""The place of a name, by its scheme. Buckets and web servers are reached only if they are named."""

from service.bulk.sources.place import Disk, Place
from service.bulk.sources.retries import Patience

_BUCKETS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


def scheme_of(name: str) -> str:
    """What stands before ://, in lower case; empty for a path on this machine."""
    scheme, mark, _ = name.partition("://")
    return scheme.lower() if mark and scheme.replace("+", "").replace("-", "").isalnum() else ""


class Places:
    """One place a scheme; a bucket has its own, since it has its own region."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._known: dict[tuple[str, str], Place] = {("", ""): Disk()}

    def of(self, name: str) -> Place:
        """Raises BulkError if nothing here knows the scheme, or its library is missing."""
        scheme = scheme_of(name)
        bucket = name.split("/", 3)[2] if scheme in _BUCKETS else ""
        if (scheme, bucket) not in self._known:
            self._known[scheme, bucket] = self._reach(scheme, bucket)
        return self._known[scheme, bucket]

    def _reach(self, scheme: str, bucket: str) -> Place:
        if scheme in ("http", "https"):
            from service.bulk.sources.web import Web

            return Web(self._patience)
        from service.bulk.sources.bucket import Bucket, file_system

        return Bucket(file_system(_BUCKETS.get(scheme, scheme), bucket), self._patience)
