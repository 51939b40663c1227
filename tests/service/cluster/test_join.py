"""A cluster that cannot be joined: said at once, with what to do."""

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

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
