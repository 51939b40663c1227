"""Ports: bound before anything is loaded, and held against others."""

import socket
import sys


def bound(host: str, port: int, *, is_shared: bool = True) -> socket.socket:
    """Bound, not listening; of those of equal address that listen, connections are dealt out. Raises OSError.

    is_shared: with other processes of ours.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error
    return found


def claimed(host: str, port: int) -> socket.socket:
    """Holds the port for all processes, and does not listen. Raises OSError if somebody listens on it.

    The option by which our processes share the port would let them share it with any other of the same user.
    """
    if port:
        with bound(host, port, is_shared=False) as alone:
            alone.listen()
    return bound(host, port)


def locked(claim: socket.socket) -> socket.socket:
    """A lock on the port's address, for as long as this process lives. Raises OSError if another has it.

    Before their encoders are loaded two services do not listen, so neither would see the other. Of Linux: a name in the
    kernel, in the network namespace that the port is in too.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if sys.platform == "linux":
        address = claim.getsockname()
        try:
            lock.bind("\0visiontower {}:{}".format(*address))
        except OSError as error:
            lock.close()
            raise OSError(
                "cannot listen on {}:{}: another visiontower serve has it".format(*address) + f" ({error})"
            ) from error
    return lock
