"""Several server processes behind one port, for machines where one interpreter is what holds a small model up.

Each has its own encoders and queue, and its part of the budget and the cores; nothing goes from one to another but
counts. The kernel deals connections out to those that listen, so they begin to listen together.

The parent replaces a process that ends or does not answer, while the others serve. It holds the port, but none of the
sockets that listen: of a process that has ended the waiting connections are reset, and new ones go to the others.
"""

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic_settings import SettingsError

from encoders.memory.machine import available_cores
from service.access.usage import Usage
from service.engine.part import part_of
from service.http.siblings import Counts, Siblings
from service.run import exits
from service.run.sockets import bound, claimed, locked
from service.settings import Settings

_log = logging.getLogger(__name__)

Serve = Callable[[Settings, Siblings, list[socket.socket]], None]
"""Serves in this process, on sockets that are bound: its share of the settings, and its siblings."""

_PR_SET_PDEATHSIG = 1
"""Of Linux' sys/prctl.h."""
_LOOK_S = 0.1
_SILENT_LOOKS = 100
"""A process whose event loop did not run between so many looks is stuck: for ten seconds and more."""
_STARTS = 5
"""So many successors in a row that end before they serve are enough."""
_LONGEST_PAUSE_S = 30.0
_LASTS_S = 60.0
"""A process that has served for as long is replaced at once, whatever its predecessors did."""
_BEYOND_DRAIN_S = 15.0
"""What a process has beside drain_timeout_s to end."""


def run(settings: Settings, serve: Serve) -> int:
    """Serve in as many processes as the settings say, until a signal. Gives the exit status.

    Raises SettingsError if there is no place for what keys have used.
    """
    # Read by the numerical libraries when they are imported; what the operator says goes.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // settings.processes)))
    with ExitStack() as held:
        if settings.has_keys and settings.keys_usage is None:  # one count for all, for as long as they serve
            try:
                usage = Path(held.enter_context(TemporaryDirectory(prefix="visiontower-"))) / "keys-usage"
            except OSError as error:
                raise SettingsError(
                    f"what keys have used has no place among temporary files: {error}. Mount /tmp, or set keys_usage."
                ) from error
            Usage(usage).close()
            settings = settings.model_copy(update={"keys_usage": usage})
        return asyncio.run(_Workers(settings, serve).run())


class Place:
    """Of one process among the others, and how those did that had it.

    process: None between two. port: on which it answers for itself alone. due: when the next is to start.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: BaseProcess | None = None
        self.port = 0
        self.due = 0.0
        self.starts = 0
        """How many in a row ended that never served."""
        self._ends = 0  # in a row, of processes that did not last
        self._beats = 0
        self._silent = 0
        self._served_since: float | None = None

    def takes(self, process: BaseProcess, *, port: int) -> None:
        """It has been started."""
        self.process, self.port = process, port
        self._beats = self._silent = 0
        self._served_since = None

    def is_stuck(self, beats: int, *, now: float) -> bool:
        """Whether its event loop does not run. To be asked at every look.

        Until it has begun to serve it is loading, however long. Looks are counted, not seconds: after a pause of the
        whole machine it is not to blame.
        """
        if beats != self._beats:
            self._beats, self._silent = beats, 0
            self._served_since = self._served_since or now
        elif self._served_since is not None:
            self._silent += 1
        return self._silent == _SILENT_LOOKS  # once: it takes a while to end

    def ended(self, *, now: float) -> None:
        """The next is due at once, and later each time if the last ones did not last."""
        since = self._served_since
        self.process = None
        self.starts = self.starts + 1 if since is None else 0
        self._ends = 1 if since is not None and now - since >= _LASTS_S else self._ends + 1
        self.due = now + (0.0 if self._ends == 1 else min(_LONGEST_PAUSE_S, 2.0 ** (self._ends - 2)))


class _Workers:
    def __init__(self, settings: Settings, serve: Serve) -> None:
        self._settings = settings
        self._serve = serve
        self._context = multiprocessing.get_context("spawn")
        self._started = self._context.RawArray(ctypes.c_bool, settings.processes)
        self._beats = self._context.RawArray(ctypes.c_uint64, settings.processes)
        self._places = [Place(index) for index in range(settings.processes)]
        self._counts = Counts()
        self._signals: list[int] = []
        self._parent_port = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for each in exits.SIGNALS:
            loop.add_signal_handler(each, self._signals.append, each)
        resource_tracker.ensure_running()  # its start unblocks signals, and would do so in the midst of `_start`
        with ExitStack() as held:
            try:
                self._claim_ports(held)
            except OSError as error:
                _log.critical("%s", error)
                return exits.CANNOT_LISTEN
            server = await asyncio.start_server(self._tell_counts, "127.0.0.1", 0)
            self._parent_port = server.sockets[0].getsockname()[1]
            async with server:
                status = None
                try:
                    settings = self._settings
                    _log.info("%d processes serve http://%s:%d", len(self._places), settings.host, settings.port)
                    if settings.metrics_port is not None:
                        _log.info("metrics and health are on http://%s:%d", settings.host, settings.metrics_port)
                    while status is None and not self._signals:
                        status = self._look(now=loop.time())
                        await asyncio.sleep(_LOOK_S)
                finally:
                    is_clean = await self._end()
        if len(self._signals) > 1:
            return 128 + self._signals[-1]
        return status or (exits.OK if is_clean else exits.FAILED)

    def _claim_ports(self, held: ExitStack) -> None:
        """Until `held` ends; from then on the settings name them. Raises OSError."""
        settings = self._settings
        ports = {"port": settings.port, "metrics_port": settings.metrics_port}
        for name, port in ports.items():
            if port is not None:
                claim = held.enter_context(claimed(settings.host, port))
                held.enter_context(locked(claim))
                ports[name] = claim.getsockname()[1]
        self._settings = settings.model_copy(update=ports)

    def _look(self, *, now: float) -> int | None:
        """Start who is due, and end who is stuck. Gives a status if it is in vain."""
        for place in self._places:
            process = place.process
            if process is None:
                if now >= place.due:
                    self._start(place)
            elif process.exitcode is not None:
                place.ended(now=now)
                status = self._why_stop(place, process, now=now)
                if status is not None:
                    return status
            elif place.is_stuck(self._beats[place.index], now=now):
                _log.critical("%s is stuck: it is killed", process.name)
                process.kill()
        return None

    def _why_stop(self, place: Place, ended: BaseProcess, *, now: float) -> int | None:
        name, status = ended.name, ended.exitcode
        if not all(self._started):
            _log.critical("%s has ended with status %s before all served: stopping", name, status)
            return abs(status or exits.FAILED)
        if place.starts >= _STARTS:
            _log.critical("%s has ended with status %s: %d in a row did not start, stopping", name, status, _STARTS)
            return exits.GAVE_UP
        _log.critical("%s has ended with status %s: the next one starts in %.0f s", name, status, place.due - now)
        return None

    def _start(self, place: Place) -> None:
        self._beats[place.index] = 0
        settings = self._settings
        public = [port for port in (settings.port, settings.metrics_port) if port is not None]
        with ExitStack() as stack:  # from then on the sockets are the process' alone
            private = stack.enter_context(bound("127.0.0.1", 0, is_shared=False))
            sockets = [private, *(stack.enter_context(bound(settings.host, port)) for port in public)]
            own = private.getsockname()[1]
            siblings = Siblings(place.index, own, self._parent_port, self._started, self._beats)
            process = self._context.Process(
                target=_work,
                args=(self._serve, share(settings), siblings, sockets),
                name=f"server {place.index + 1}",
            )
            # A terminal sends its SIGINT to the children too. They obey their parent alone, so they inherit it blocked.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        place.takes(process, port=own)

    async def _end(self) -> bool:
        """Tell all to stop, and wait; kill who does not, and all at a second signal. Whether all ended in order."""
        loop = asyncio.get_running_loop()
        processes = [place.process for place in self._places if place.process is not None]
        for process in processes:
            process.terminate()
        self._started[:] = [True] * len(self._places)  # nobody waits for one that is gone
        until = loop.time() + self._settings.drain_timeout_s + _BEYOND_DRAIN_S
        while any(process.exitcode is None for process in processes):
            if len(self._signals) > 1 or loop.time() > until:
                for process in processes:
                    process.kill()
            await asyncio.sleep(_LOOK_S)
        return all(process.exitcode in (exits.OK, -signal.SIGTERM) for process in processes)

    async def _tell_counts(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Everybody's metrics to whoever connects, and nothing else."""
        processes = ((place.process, place.port) for place in self._places)
        ports = {process.pid: port for process, port in processes if process is not None and process.pid is not None}
        with suppress(OSError, asyncio.CancelledError):  # the latter at the end, which asyncio would tell as an error
            writer.write(await self._counts.exposition(ports))
            await writer.drain()
        writer.close()


def _work(serve: Serve, settings: Settings, siblings: Siblings, sockets: list[socket.socket]) -> None:
    """In the new process: serve, and end with the parent, however that ends."""
    with suppress(OSError, AttributeError):  # on Linux the kernel sees to it, whatever this process is at
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    exits.end_at_once_on_signals()
    serve(settings, siblings, sockets)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(exits.FAILED)


def share(settings: Settings) -> Settings:
    """One process' part of the settings: of the budgets, the cache in memory and the threads. They share that on disk.

    The queue is not divided: connections are not dealt out evenly, and one would refuse while another has room.
    """
    number = settings.processes
    part: dict[str, Any] = {
        "processes": 1,
        "cache": settings.cache // number,
        "cuda_graph_bytes": settings.cuda_graph_bytes // number,
    }
    if settings.vram_budget != "auto":
        part["vram_budget"] = settings.vram_budget // number
    if settings.memory_budget != "auto":
        part["memory_budget"] = settings.memory_budget // number
    one = part_of(settings, host=1 / number, device=1 / number, cores=available_cores() // number)
    return one.model_copy(update=part)
