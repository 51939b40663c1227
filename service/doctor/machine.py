"""Memory, cores, files, folders and the port of this machine. Without torch; nothing is written."""

import errno
import os
import shutil
import socket
import tempfile
from pathlib import Path

import psutil

from encoders.memory.machine import core_quotas, cores_to_run_on, host_memory, memory_limits
from service.doctor.facts import Asked, Files, Folder, Machine, Port
from service.run import files

SHARED_MEMORY = Path("/dev/shm")


def machine() -> Machine:
    """The machine's memory and cores, and this process' part of them."""
    total = psutil.virtual_memory().total
    limits = [each.limit for each in memory_limits() if each.limit < total]  # without a limit version 1 names 2^63
    return Machine(
        memory=total,
        limit=min(limits, default=None),
        free=host_memory()[1],
        swap_used=psutil.swap_memory().used,
        cores=os.cpu_count() or 1,
        allowed=cores_to_run_on(),
        quota=min(core_quotas(), default=None),
    )


def open_files(connections: int) -> Files:
    """For a server with so many connections."""
    soft, hard = files.limits()
    return Files(soft=soft, hard=hard, needed=files.needed(connections))


def temporary_folder() -> Folder:
    """Where this process puts files for a moment. Raises FileNotFoundError if it can nowhere."""
    return folder(Path(tempfile.gettempdir()))


def folder(path: Path, *, counts: bool = False) -> Folder:
    """A folder, or what is known of one that is not there yet. counts: whether what it holds is added up."""
    there = next(each for each in (path, *path.parents) if each.exists())
    return Folder(
        path=str(path),
        exists=there == path,
        is_writable=there.is_dir() and os.access(there, os.W_OK),
        free=shutil.disk_usage(there).free,
        held=_bytes_in(path) if counts else None,
    )


def _bytes_in(path: Path) -> int:
    """Of its files. Links are not followed: the hub's cache has a file once, and a link to it for each revision."""
    held = 0
    for root, _, names in os.walk(path):
        for name in names:
            found = Path(root, name)
            if found.exists():  # else it has gone, or is a link to nothing
                held += found.lstat().st_size
    return held


def ports(asked: Asked) -> tuple[Port, ...]:
    """Whether a server could listen where the settings say. It is tried, for a moment."""
    numbers = {"port": asked.port, "metrics_port": asked.metrics_port}
    return tuple(_port(setting, asked.host, number) for setting, number in numbers.items() if number is not None)


def _port(setting: str, host: str, number: int) -> Port:
    problem = None
    is_taken = False
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen()
    except OSError as error:
        problem, is_taken = error.strerror or str(error), error.errno == errno.EADDRINUSE
    return Port(setting, host, number, problem, is_taken)
