"""A Hugging Face hub on this machine: the few answers that huggingface_hub needs to fetch a file."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as constants
import pytest

REVISION = "a" * 40


@dataclass
class Hub:
    """folders: repository -> the files that it has. refusals: repository -> (status, the hub's own code for it)."""

    url: str
    folders: Mapping[str, Path]
    refusals: Mapping[str, tuple[int, str]]
    fetched: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/api/"):  # lists of files: it has none
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        repository, _, rest = path.strip("/").partition("/resolve/")
        if repository in self.refusals:
            status, code = self.refusals[repository]
            return status, {"X-Error-Code": code}, b""
        if repository not in self.folders:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        revision, _, name = rest.partition("/")
        if revision not in ("main", REVISION):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        file = self.folders[repository] / name
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION}, b""
        content = file.read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": REVISION}, content


@contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    folders: Mapping[str, Path],
    refusals: Mapping[str, tuple[int, str]] | None = None,
) -> Iterator[Hub]:
    """The hub that huggingface_hub asks meanwhile; what it fetches goes to `cache`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._respond(with_body=False)

        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                hub.fetched.append(self.path)
            self._respond(with_body=True)

        def _respond(self, *, with_body: bool) -> None:
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", folders, refusals or {})
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        ask(monkeypatch, hub.url, cache)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def ask(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Have huggingface_hub ask this address, and keep what it fetches in `cache`."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps the address that it was made with
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
