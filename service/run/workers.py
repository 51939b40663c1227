"""Several server processes behind one port, for machines where one interpreter is what holds a small model up.

Each has its own encoders and queue, and its part of the budget and the cores; nothing goes from one to another but
counts. The kernel deals connections out to those that listen, so they begin to listen together. Whichever is asked for
/metrics asks the others and answers for all.
"""

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from service.settings import Settings

_log = logging.getLogger(__name__)
_ASK_S = 5.0
_PAUSE_S = 0.02
_HIGHEST = ("visiontower_queue_oldest_seconds", "visiontower_vram_prediction_ratio", "visiontower_batch_padding_ratio")
_LOWEST = ("visiontower_model_ready",)
_OF_THE_DEVICE = ("free", "total")
"""Kinds of visiontower_vram_bytes that every process sees whole."""


@dataclass(frozen=True)
class Place:
    """One process' place among the others.

    ports: on which each answers for itself alone; `own` is this one's. started: whether each is ready to listen, in
    memory that all share.
    """

    ports: tuple[int, ...]
    own: int
    started: "ctypes.Array[ctypes.c_bool]"

    async def together(self) -> None:
        """Say that this process is ready to listen, and wait until all are.

        Whoever listens first is given all connections there are, and keeps them for as long as they last.
        """
        self.started[self.ports.index(self.own)] = True
        while not all(self.started):
            await asyncio.sleep(_PAUSE_S)

    async def exposition(self, own: bytes, *, port: int | None) -> bytes:
        """Everybody's metrics; only the own ones if asked on the own port. One that does not answer is left out.

        own: this process' metrics, as text. port: on which they were asked for.
        """
        if port == self.own:
            return own
        async with httpx.AsyncClient(timeout=_ASK_S, trust_env=False) as client:
            asked = [client.get(f"http://127.0.0.1:{other}/metrics") for other in self.ports if other != self.own]
            answers = await asyncio.gather(*asked, return_exceptions=True)
        texts = [answer.text for answer in answers if isinstance(answer, httpx.Response)]
        return await asyncio.to_thread(merged, [own.decode(), *texts])


def merged(expositions: Iterable[str]) -> bytes:
    """Metrics of several processes as one: counts add up, and of what cannot be added the worst is shown."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in expositions:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known = values.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                combine = _combination(family.name, sample.labels)
                known[key] = combine((known[key], sample.value)) if key in known else sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(families.values()))
    return generate_latest(registry)


def _combination(family: str, labels: dict[str, str]) -> Callable[[tuple[float, float]], float]:
    if family in _HIGHEST or labels.get("kind") in _OF_THE_DEVICE:
        return max
    return min if family in _LOWEST else sum


class _Given(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """As given."""
        return self._families


Serve = Callable[[Settings, Place, list[socket.socket]], None]
"""Serves in this process, on sockets that are bound: its share of the settings, and its place."""


def run(settings: Settings, serve: Serve) -> int:
    """Serve in as many processes as the settings say, until a signal. Gives the exit code.

    If one ends on its own the others are told to stop, so that whoever watches the service starts all of it anew.
    """
    number = settings.processes
    # Read by the numerical libraries when they are imported; what the operator says goes.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // number)))
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
            place, sockets = Place(ports, ports[index], started), [public[index], private[index]]
            children.append(
                context.Process(target=serve, args=(share(settings), place, sockets), name=f"server {index + 1}")
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
    """One process' part of the settings: of the budget and the threads.

    The queue is not divided: connections are not dealt out evenly, and one would refuse while another has room.
    """
    number = settings.processes
    part: dict[str, Any] = {"processes": 1, "vram_share": settings.vram_share / number}
    if settings.vram_budget != "auto":
        part["vram_budget"] = settings.vram_budget // number
    if settings.preprocess_threads == "auto":
        part["preprocess_threads"] = max(1, _cores() // number)
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


def _cores() -> int:
    return os.cpu_count() or 1
