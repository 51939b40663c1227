"""Buckets and other file systems of fsspec: s3://, gs://, hf:// and those whose library is installed.

S3 and Google Cloud Storage are read by pyarrow, which is installed anyway. Credentials, region and endpoint are found
as the provider's own tools find them: in the environment, in configuration files, as the machine's role.
"""

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from threading import Event
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.utils import glob_translate

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError, NoSuchPlace
from service.bulk.sources.place import shown
from service.bulk.sources.retries import Patience, reason

T = TypeVar("T")
_GCS_TRIES = timedelta(seconds=10)
"""For how long its library tries again by itself; then Patience does."""
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "sha256", "blob_id", "created")


def file_system(scheme: str, bucket: str) -> Any:
    """A file system of fsspec. Raises NoSuchPlace, or BulkError if its library or the bucket is not there."""
    try:
        if scheme in ("s3", "gs") and not bucket:
            raise NoSuchPlace(f"{scheme}:// names no bucket.")
        if scheme == "s3":
            return ArrowFSWrapper(_s3(bucket))
        if scheme == "gs":
            return ArrowFSWrapper(pyarrow.fs.GcsFileSystem(retry_time_limit=_GCS_TRIES))
        if scheme not in fsspec.available_protocols():
            raise NoSuchPlace(f"{scheme}:// is no scheme that is known here: s3://, gs:// and https:// are.")
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise BulkError(f"{scheme}:// needs a library that is not installed here: {error}.") from error
    except (OSError, ValueError) as error:
        raise BulkError(f"{scheme}://{bucket} cannot be reached: {reason(error)}.") from error


def _s3(bucket: str) -> Any:
    options: dict[str, object] = {
        "connect_timeout": 10,
        "request_timeout": 60,
        "retry_strategy": pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),  # Patience tries again
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        parts = urlsplit(endpoint)
        options |= {"scheme": parts.scheme, "endpoint_override": parts.netloc}
    elif not region:
        region = pyarrow.fs.resolve_s3_region(bucket)
    return pyarrow.fs.S3FileSystem(region=region or "us-east-1", **options)


class Bucket:
    """The files of one fsspec file system. Names are whole URLs."""

    def __init__(self, files: Any, patience: Patience) -> None:
        self._files = files
        self._patience = patience

    def is_folder(self, name: str) -> bool:
        """Whether it is a prefix of others."""
        try:
            return bool(self._about(name)["type"] == "directory")
        except FileNotFoundError as error:
            raise BulkError(f"{shown(name)} is not there.") from error

    def below(self, folder: str) -> Iterator[str]:
        """One folder's names are in memory at a time."""
        return self._walk(folder.partition("://")[0], _path(folder), depth=None)

    def matching(self, pattern: str) -> Iterator[str]:
        """As the shell's globs. A bucket is listed from the first folder that is a pattern."""
        scheme, path = pattern.partition("://")[0], _path(pattern)
        fixed = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]  # it has one
        depth = None if "**" in path else path.count("/") - fixed.count("/")
        matches = re.compile(glob_translate(path)).match
        return (name for name in self._walk(scheme, fixed, depth) if matches(_path(name)))

    def stamp(self, name: str) -> Mapping[str, object]:
        """Its size and, as far as the server tells, its tag or the time of its last change."""
        about = self._about(name)
        return {"bytes": about["size"], **{key: str(about[key]) for key in _STAMPS if about.get(key) is not None}}

    def open(self, name: str) -> BinaryIO:
        """Read in blocks of some MiB."""
        size = self._about(name)["size"]
        return self._patience.file(name, size, lambda start, stop: self._part(name, start, stop))

    def join(self, file: str, path: str) -> str | None:
        """By the names alone."""
        return join_url(file, path)

    def image(self, name: str, stop: Event) -> bytes | ImageError:
        """The whole object."""
        return self._patience.image(name, lambda: self._whole(name), stop)

    def _about(self, name: str) -> Any:
        return self._patience.read(name, lambda: self._call(self._files.info, _path(name)))

    def _listed(self, folder: str) -> list[Mapping[str, str]]:
        return list(self._files.ls(folder, detail=True))

    def _whole(self, name: str) -> bytes:
        return bytes(self._call(self._files.cat_file, _path(name)))

    def _part(self, name: str, start: int, stop: int) -> bytes:
        def part(path: str) -> bytes:
            with self._files.open(path, "rb", cache_type="none") as file:
                file.seek(start)
                return bytes(file.read(stop - start))

        return self._call(part, _path(name))

    def _call(self, action: Callable[[str], T], path: str) -> T:
        """The action's result. The libraries below have errors of their own: all become OSError."""
        try:
            return action(path)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    def _walk(self, scheme: str, folder: str, depth: int | None) -> Iterator[str]:
        """The files below, `depth` folders deep. fsspec's own walk leaves out what a busy server does not list."""
        entries = self._patience.read(f"{scheme}://{folder}", lambda: self._call(self._listed, folder))
        inside = [
            (posixpath.basename(each["name"].rstrip("/")), each["type"]) for each in entries if _is_below(each, folder)
        ]
        for name, kind in sorted(inside):  # a bucket may have both, a/b and a/b/c
            path = f"{folder}/{name}"
            if kind != "directory":
                yield f"{scheme}://{path}"
            elif depth is None or depth > 1:
                yield from self._walk(scheme, path, depth and depth - 1)


def _is_below(entry: Mapping[str, str], folder: str) -> bool:
    """Not the folder itself, of which some buckets have an object."""
    return entry["name"].strip("/") != folder.strip("/")


def _path(name: str) -> str:
    return name.partition("://")[2].rstrip("/")


def join_url(file: str, path: str) -> str | None:
    """The URL of `path` where it stands in the file with this URL; None if it is not below the file's folder."""
    folder = file.rpartition("/")[0]
    whole = posixpath.normpath(path)
    if not path or whole.startswith(("/", "../")) or whole in ("..", ".") or "\0" in path or "\\" in path:
        return None
    return f"{folder}/{whole}"
