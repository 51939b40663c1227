"""Files behind http:// and https://: whole images, and parts of tables and tars. A web server lists nothing."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import BinaryIO
from urllib.parse import quote
from weakref import finalize

import httpx

from encoders.contract.errors import ImageError
from service.bulk.errors import BulkError
from service.bulk.sources.bucket import join_url
from service.bulk.sources.hosts import Hosts
from service.bulk.sources.place import shown
from service.bulk.sources.retries import NoSuchServer, Patience, Refused

_BUSY = frozenset({408, 425, 429, *range(500, 600)}) - {501, 505}
_UNKNOWN = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}  # the latter is not everywhere
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)


class Web:
    """Files by URL. Redirects are followed: whoever names the URL trusts its server."""

    def __init__(self, patience: Patience) -> None:
        self._client = httpx.Client(follow_redirects=True, timeout=_TIMEOUT)
        finalize(self, self._client.close)
        self._patience = patience
        self._hosts = Hosts(patience)

    def is_folder(self, name: str) -> bool:
        """Never. Raises BulkError for a URL that ends as a folder's."""
        if name.endswith("/"):
            raise BulkError(
                f"{shown(name)}: a web server does not list its files. Give their URLs, or a --list of them."
            )
        return False

    def below(self, folder: str) -> Iterator[str]:
        """Raises BulkError."""
        raise BulkError(f"{shown(folder)}: a web server does not list its files.")

    def matching(self, pattern: str) -> Iterator[str]:
        """The pattern itself: * and ? are letters of a URL."""
        return iter([pattern])

    def stamp(self, name: str) -> Mapping[str, object]:
        """Its size and, as far as the server tells, its tag and the time of its last change."""
        size, headers = self._about(name)
        return {"bytes": size, **{key: headers[key] for key in ("etag", "last-modified") if key in headers}}

    def open(self, name: str) -> BinaryIO:
        """Read in blocks of some MiB. Raises BulkError if the server gives files only whole."""
        size, _ = self._about(name)
        return self._patience.file(name, size, lambda start, stop: self._part(name, start, stop)[0])

    def join(self, file: str, path: str) -> str | None:
        """By the names alone; what is special in a URL is escaped."""
        return join_url(file.partition("?")[0], quote(path))

    def image(self, name: str, stop: Event) -> bytes | ImageError:
        """The whole body."""
        return self._hosts.image(name, lambda: self._get(name).content, stop)

    def _about(self, name: str) -> tuple[int, httpx.Headers]:
        _, headers = self._patience.read(name, lambda: self._part(name, 0, 1))
        return int(headers["content-range"].rpartition("/")[2]), headers

    def _part(self, name: str, start: int, stop: int) -> tuple[bytes, httpx.Headers]:
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with _asked(), self._client.stream("GET", name, headers=headers) as response:
            _check(response)
            if response.status_code != 206:
                raise BulkError(f"{shown(name)}: its server gives no parts of files. Download it first.")
            return response.read(), response.headers

    def _get(self, name: str) -> httpx.Response:
        with _asked():
            response = self._client.get(name)
            _check(response)
            return response


@contextmanager
def _asked() -> Iterator[None]:
    """What cannot be asked for at all is Refused."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.DecodingError) as error:
        raise Refused(str(error)) from error
    except ValueError as error:  # of what turns names of hosts into bytes
        raise Refused(f"its host cannot be looked up: {error}") from error
    except httpx.ConnectError as error:
        if _is_unknown(error):
            raise NoSuchServer("there is no server of this name") from error
        raise


def _is_unknown(error: BaseException | None) -> bool:
    """Whether a name server said that there is no such host; not, that it cannot say."""
    while error is not None and not isinstance(error, socket.gaierror):
        error = error.__cause__ or error.__context__
    return error is not None and error.errno in _UNKNOWN


def _check(response: httpx.Response) -> None:
    """Raises OSError for all but an answer with content: Refused if asking again cannot help."""
    if response.is_success:
        return
    words = f"it answered {response.status_code}"
    raise OSError(words) if response.status_code in _BUSY else Refused(words)
