"""Joins a cluster as its driver, or starts one on this machine."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from service.cluster.errors import ClusterError

LOCAL = "local"
"""Names a cluster that begins and ends with this process, on this machine."""
_ANSWERS_S = 5.0
_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""Of a connection of HTTP/2, with an empty frame of SETTINGS."""
_OF_RAY = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of a change that is none for us
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else what is cleaned up after the end would start another cluster
}
"""Variables that it reads when it is imported."""
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray reads it when it is imported, on Linux too. At 0 it listens on the loopback interface alone."""


@contextmanager
def joined(address: str, **local: Any) -> Iterator[Mapping[str, float]]:
    """Be a driver of the cluster inside; gives its resources by Ray's names, such as CPU and GPU.

    address: `auto`, the cluster of which this machine is a node; `local`, a new one that ends with the block; HOST:PORT
    or ray://HOST:PORT. local: arguments of ray.init for a new one. What the workers print stays in the cluster's logs.

    Raises ClusterError if Ray is not installed, nothing answers, or the cluster refuses.
    """
    _check(address)
    if address.startswith((LOCAL, "127.")):
        os.environ.setdefault(_CLUSTERS, "0")
    if address != LOCAL and _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does; a cluster that wants none takes it too
    ray = require_ray()
    if address == LOCAL:
        os.environ.setdefault("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # what we can import, workers can
    try:
        ray.init(
            address=address, logging_level=logging.ERROR, log_to_driver=False, **(local if address == LOCAL else {})
        )
    except Exception as error:  # Ray raises this very class where one of its processes does not start in time
        raise ClusterError(_why_not(address, error)) from error
    try:
        yield ray.cluster_resources()
    finally:
        with _uninterrupted():
            ray.shutdown()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """SIGINT is ignored inside: in the middle of Ray's shutdown it is a segmentation fault."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def work_in(folder: str) -> None:
    """In a process of the cluster: its relative paths are those of the command, whose folder it is, if it is here too.

    Ray starts processes in the folder where the machine joined the cluster.
    """
    with suppress(OSError):
        os.chdir(folder)


def _has_token() -> bool:
    """Whether Ray would find a token: any cluster that was begun here has left one in the home directory."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return True
    return Path("~/.ray/auth_token").expanduser().is_file()


def require_ray() -> Any:
    """The module. Raises ClusterError if it is not installed."""
    for name, value in _OF_RAY.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ClusterError("A cluster needs Ray, which is not installed: pip install 'visiontower[ray]'.") from error
    return ray


def _check(address: str) -> None:
    """Ray would wait for minutes where nobody listens. Raises ClusterError."""
    if address in ("auto", LOCAL):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ClusterError(
            f"'{address}' is no address of a cluster: use auto, local, HOST:PORT (6379 as a rule) or ray://HOST:PORT "
            "(10001)."
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_S) as connection:
            speaks = "RAY_USE_TLS" in os.environ or _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        raise ClusterError(f"No cluster answers at {address} ({error}). 'ray status' shows a running one.") from error
    if not speaks:
        raise ClusterError(
            f"What answers at {address} is no cluster: its port is 6379 as a rule, that of ray:// is 10001, and 8265 "
            "is the dashboard's."
        )


def _speaks_http2(connection: socket.socket) -> bool:
    """As gRPC does: it answers an opening with its own SETTINGS, the frame of type 4."""
    connection.sendall(_OPENING)
    head = b""
    while len(head) < 4:
        if not (more := connection.recv(4 - len(head))):
            return False
        head += more
    return head[3] == 4


def _why_not(address: str, error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    token = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, as on the cluster's machines."
    if "auth" in f"{type(error).__name__} {error}".lower():
        return f"The cluster at {address} refuses this process: {first} Set {token}"
    if address == LOCAL:
        return f"A cluster could not be started on this machine: {first}"
    if address == "auto":
        return f"This machine is no node of a running cluster: {first} Start one by 'ray start --head', or use local."
    # of a wrong token Ray says no more than that it could not connect
    return f"The cluster at {address} cannot be joined: {first.rstrip('.')}. If it wants a token, set {token}"
