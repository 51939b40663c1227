"""Several server processes behind one port, for machines where one interpreter is what holds a small model up.

Each has its own encoders and queue, and its part of the budget and the cores; nothing goes from one to another but
counts. The kernel deals connections out to those that listen, so they begin to listen together. Whichever is asked for
/metrics asks the others and answers for all.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from encoders.memory.machine import available_cores
from service.http.siblings import Siblings
from service.memory.account import automatic_limit
from service.settings import Settings

_log = logging.getLogger(__name__)


Serve = Callable[[Settings, Siblings, list[socket.socket]], None]
"""Serves in this process, on sockets that are bound: its share of the settings, and its siblings."""


def run(settings: Settings, serve: Serve) -> int:
    """Serve in as many processes as the settings say, until a signal. Gives the exit code.

    If one ends on its own the others are told to stop, so that whoever watches the service starts all of it anew.
    """
    number = settings.processes
    # Read by the numerical libraries when they are imported; what the operator says goes.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // number)))
    context = multiprocessing.get_context("spawn")
    started = context.RawArray(ctypes.c_bool, number)
    children: list[BaseProcess] = []
    asked = threading.Event()

    def end() -> None:
        started[:] = [True] * number  # nobody waits for one that is gone
        for child in children:
            if child.is_alive():
                child.terminate()

    def stop(*_: object) -> None:
        asked.set()
        end()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)
    with ExitStack() as stack:
        try:
            public = [stack.enter_context(_bound(settings.host, settings.port))]
            port = public[0].getsockname()[1]
            public += [stack.enter_context(_bound(settings.host, port)) for _ in range(number - 1)]
        except OSError as error:
            _log.critical("cannot listen on %s:%d: %s", settings.host, settings.port, error)
            return 1
        private = [stack.enter_context(_bound("127.0.0.1", 0)) for _ in range(number)]
        ports = tuple(each.getsockname()[1] for each in private)
        for index in range(number):
            siblings, sockets = Siblings(ports, ports[index], started), [public[index], private[index]]
            children.append(
                context.Process(target=serve, args=(share(settings), siblings, sockets), name=f"server {index + 1}")
            )
            children[-1].start()
    _log.info("%d processes serve http://%s:%d", number, settings.host, port)
    ended = wait([child.sentinel for child in children])
    first = next(child for child in children if child.sentinel in ended)
    if not asked.is_set():
        _log.critical("%s has ended: stopping the others", first.name)
    end()
    for child in children:
        child.join()
    return 0 if asked.is_set() else abs(first.exitcode or 3)


def share(settings: Settings) -> Settings:
    """One process' part of the settings: of the budgets and the threads.

    The queue is not divided: connections are not dealt out evenly, and one would refuse while another has room.
    """
    number = settings.processes
    part: dict[str, Any] = {"processes": 1, "vram_share": settings.vram_share / number}
    if settings.vram_budget != "auto":
        part["vram_budget"] = settings.vram_budget // number
    total = automatic_limit() if settings.memory_budget == "auto" else settings.memory_budget
    part["memory_budget"] = total // number
    if settings.preprocess_threads == "auto":
        part["preprocess_threads"] = max(1, available_cores() // number)
    return settings.model_copy(update=part)


def _bound(host: str, port: int) -> socket.socket:
    """Bound, not listening: connections are dealt out among those of equal address that listen. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
