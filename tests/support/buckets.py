"""A server on loopback that gives files as S3 does, and as a plain web server does; it can be busy at first."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Store:
    """files: bucket/key -> content. busy: answers of 503 before each file's and each listing's first other one."""

    url: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    busy: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    lock: Lock = field(default_factory=Lock)

    def is_busy(self, what: str) -> bool:
        """Whether this request is told to come again."""
        with self.lock:
            self.asked[what] += 1
            return self.asked[what] <= self.busy


@contextmanager
def store_of(files: Mapping[str, bytes], *, busy: int = 0) -> Iterator[Store]:
    """A store that answers while the `with` lasts."""
    store = Store(files=files, busy=busy)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer is one packet, and waits for nobody

        def log_message(self, format: str, *values: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            name, query = unquote(parts.path).strip("/"), parse_qs(parts.query, keep_blank_values=True)
            if store.is_busy(f"{name}?{query.get('prefix', [''])[0]}"):
                self._give(503, b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>")
            elif "list-type" in query:
                prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
                self._give(200, _listing(store.files, name, prefix, delimiter))
            elif name in store.files:
                self._give_part(store.files[name])
            elif any(each.startswith(f"{name}/") for each in store.files) and "/" not in name:
                self._give(200, b"")
            else:
                self._give(404, b"<Error><Code>NoSuchKey</Code><Message>It is not there.</Message></Error>")

        def _give_part(self, content: bytes) -> None:
            asked = self.headers.get("Range")
            if asked is None:
                return self._give(200, content)
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1]
            about = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self._give(206, part, {"Content-Range": about})

        def _give(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Last-Modified", "Sun, 01 Nov 2026 12:00:00 GMT")
            self.send_header("ETag", f'"{hash(content):x}"')
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _listing(files: Mapping[str, bytes], bucket: str, prefix: str, delimiter: str) -> bytes:
    """S3's ListObjectsV2, in one page."""
    contents: list[str] = []
    prefixes: dict[str, None] = {}
    for name in sorted(files):
        key = name.removeprefix(f"{bucket}/")
        if not name.startswith(f"{bucket}/") or not key.startswith(prefix):
            continue
        rest = key[len(prefix) :]
        if delimiter and delimiter in rest:
            prefixes[prefix + rest.partition(delimiter)[0] + delimiter] = None
        else:
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-01T12:00:00.000Z</LastModified>"
                f"<Size>{len(files[name])}</Size></Contents>"
            )
    folders = "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in prefixes)
    count = len(contents) + len(prefixes)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{count}</KeyCount>"
        f"<IsTruncated>false</IsTruncated>{''.join(contents)}{folders}</ListBucketResult>"
    ).encode()
