"""A cluster that cannot be joined: said at once, with what to do."""

import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from service.cluster.errors import ClusterError
from service.cluster.join import joined


@pytest.mark.parametrize("address", ["nowhere", "10.0.0.1", "ray://10.0.0.1", ":6379", "host:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="is no address of a cluster: use auto, local, HOST:PORT"), joined(address):
        pass


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nobody_listens_nobody_is_waited_for(scheme: str) -> None:
    with socket.socket() as bound:  # it does not listen
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(ClusterError, match=f"No cluster answers at {scheme}127.0.0.1:{port}"):
            joined(f"{scheme}127.0.0.1:{port}").__enter__()


def test_a_port_of_something_else_is_said_at_once() -> None:
    """Such as the dashboard's: Ray would try for minutes, and end the process."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            with pytest.raises(ClusterError, match=r"is no cluster: its port is 6379"):
                joined(f"127.0.0.1:{server.server_address[1]}").__enter__()
        finally:
            server.shutdown()


@pytest.mark.parametrize(("address", "mode"), [("auto", "token"), ("local", None)])
def test_a_token_that_is_here_is_sent_to_a_cluster_that_is_there(
    address: str, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`local` leaves one in the home directory; from then on `ray start` asks for it, and says so nowhere."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0" * 64)
    refuse_with("RuntimeError", monkeypatch)
    with pytest.raises(ClusterError):
        joined(address).__enter__()
    assert os.environ.get("RAY_AUTH_MODE") == mode


def test_a_cluster_that_does_not_say_why_it_refuses_may_want_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with listening.accept()[0] as connection:
                connection.sendall(b"\x00\x00\x00\x04")  # as gRPC begins
                while connection.recv(1024):
                    pass

        address = f"127.0.0.1:{listening.getsockname()[1]}"
        answering = Thread(target=answer)
        answering.start()
        refuse_with(f"Failed to connect to Ray cluster at {address}", monkeypatch)
        with pytest.raises(ClusterError, match=rf"{address}\. If it wants a token, set RAY_AUTH_MODE"):
            joined(address).__enter__()
        answering.join()


def refuse_with(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray, which cannot join."""

    def init(**options: object) -> None:
        raise ConnectionError(message)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
