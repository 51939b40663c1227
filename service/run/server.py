"""The process: loads real encoders, listens, and stops in order. Of uvicorn, only connection.py knows more."""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from pydantic_settings import SettingsError

from service.access.usage import Usage
from service.engine.backend import Backend
from service.engine.engine import Engine
from service.http.app import create_app
from service.http.siblings import Siblings
from service.run import exits, files, heap, interpreter, workers
from service.run.connection import Connection, Door
from service.run.sockets import bound
from service.settings import Settings
from service.telemetry import logs

_log = logging.getLogger(__name__)
_FLUSH_S = 5.0
"""Answers get as long to leave before a process ends whose device hangs."""
_LAST_S = 10.0
"""After an orderly stop the process ends at the latest; a thread inside a library may never."""
_STILL_S = 30.0
"""Longer than an event loop stands still for any good reason."""
_TICKS_A_SECOND = 10
"""uvicorn's."""


def serve(settings: Settings) -> None:
    """Serve until a signal, then end the process. Admitted requests are finished first, but not at a second signal.

    The status is one of run/exits.py. With several processes this returns, or raises SystemExit if it is not 0.
    Raises SettingsError for a file that cannot keep what keys have used.
    """
    if settings.keys_usage is not None:  # made once, and what is wrong with it is said once, before anything is loaded
        Usage(settings.keys_usage).close()
    if settings.processes == 1:
        _serve(settings)
        return
    logs.configure(settings.log_level, form=settings.log_format)
    if status := workers.run(settings, _serve):
        raise SystemExit(status)


def _serve(settings: Settings, siblings: Siblings | None = None, sockets: list[socket.socket] | None = None) -> None:
    """In this process. sockets: bound already; None to bind the settings' address."""
    interpreter.begin_loading()
    files.allow(settings.max_connections)
    logs.configure(settings.log_level, form=settings.log_format)
    try:
        server = make_server(settings, siblings=siblings)
    except OSError as error:
        _log.critical("%s", error)
        exits.end(exits.CANNOT_LISTEN)
    except SettingsError as error:
        _log.critical("cannot serve: %s", error)
        exits.end(exits.WRONG_SETTING)
    server.owns_process = True
    try:
        server.run(sockets)
        status = server.status
    except SystemExit:  # uvicorn's: the start failed, and the log says why
        status = exits.FAILED
    exits.end(status)


def make_server(
    settings: Settings,
    *,
    backend: Backend | None = None,
    clock: Callable[[], float] = time.monotonic,
    siblings: Siblings | None = None,
) -> "Server":
    """The server, not yet running. It stops by itself if the device is lost or hangs. backend, clock: as of Engine.

    siblings: if it is one of several processes, whose parent binds their ports, and watches them. Raises OSError if
    there is a metrics_port, and it is taken; SettingsError as create_app.
    """
    is_watched = settings.on_hang == "exit" and siblings is None
    metrics_socket = None
    if settings.metrics_port is not None and siblings is None:
        metrics_socket = bound(settings.host, settings.metrics_port, is_shared=False)
        settings = settings.model_copy(update={"metrics_port": metrics_socket.getsockname()[1]})
    app = create_app(settings, backend=backend, clock=clock, siblings=siblings)
    door: Any = partial(Connection, door=Door(settings, app.state.metrics, probe_ports=app.state.probe_ports))
    return Server(
        uvicorn.Config(
            app,
            http=door,  # uvicorn calls it as it would a class
            ws="none",
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            proxy_headers=False,  # whom a proxy speaks for is of no interest here
            timeout_graceful_shutdown=int(settings.drain_timeout_s) + 5,  # ours comes first, and answers
        ),
        siblings=siblings,
        metrics_socket=metrics_socket,
        still_s=_STILL_S if is_watched else None,
    )


class Server(uvicorn.Server):
    """Drains in order: stop listening and admitting, answer the admitted requests, then end.

    owns_process: whether it may end the process where no order helps: at a second signal, and at one that comes while
    encoders are loaded, as a load cannot be interrupted.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        siblings: Siblings | None = None,
        metrics_socket: socket.socket | None = None,
        still_s: float | None = None,
    ) -> None:
        """siblings: if it is one of several processes; then their parent tells it to stop, by one SIGTERM.

        metrics_socket: bound; it listens on this one too. still_s: a process of its own ends if its event loop stands
        still for as many seconds; None: never.
        """
        super().__init__(config)
        self.owns_process = False
        self.still_s = still_s
        self._siblings = siblings
        self._metrics_socket = metrics_socket
        self._heap = heap.Heap(clock=time.monotonic)

    @property
    def engine(self) -> Engine:
        """Of the app, once it has started."""
        engine: Engine = self.config.loaded_app.state.engine
        return engine

    @property
    def is_device_lost(self) -> bool:
        """Whether a device thread ended on its own."""
        return self.started and self.engine.threads.is_lost

    @property
    def is_hung(self) -> bool:
        """Whether a forward hangs, and the process is to end for it."""
        return self.started and self.engine.is_hung

    @property
    def status(self) -> int:
        """Of the process, once `run` has returned."""
        return exits.HUNG if self.is_hung else exits.FAILED if self.is_device_lost else exits.OK

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn.Server, which raises the signals again in the end: an orderly stop would look like a kill."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in exits.SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal: stop in order; the second: end now.

        A terminal, and some supervisors, send signals to the parent and to its children: these obey the parent alone.
        """
        if self._siblings is not None and (sig == signal.SIGINT or self.should_exit):
            return
        if self.owns_process and not self.started:
            os._exit(exits.OK)
        if self.owns_process and self.should_exit:
            os._exit(128 + sig)
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn.Server."""
        await super().startup(sockets)
        if self._metrics_socket is not None:
            self.servers.append(await self._listen(self._metrics_socket))
        interpreter.loaded()

    async def _listen(self, on: socket.socket) -> asyncio.Server:
        """As uvicorn does on its sockets: either on those that it is given, or on one that it binds."""
        connection: Any = self.config.http_protocol_class
        make = partial(connection, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        server = await asyncio.get_running_loop().create_server(make, sock=on)
        _log.info("metrics and health are on http://%s:%d", *on.getsockname()[:2])
        return server

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn.Server, ten times a second: whether to stop."""
        self.engine.watch()
        if self._siblings is not None:
            self._siblings.beat()
        if self.owns_process:
            self._heap.look(is_idle=self.engine.admission.is_empty)
            if self.still_s is not None and counter % _TICKS_A_SECOND == 0:
                # Its thread is C's: it needs no interpreter, whose lock may be what everything waits for.
                faulthandler.dump_traceback_later(self.still_s, exit=True)
        return await super().on_tick(counter) or self.is_device_lost or self.is_hung

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn.Server, which waits for open answers here; drain sees to it that they come, or fail by name."""
        if self.owns_process and self.still_s is not None:
            faulthandler.cancel_dump_traceback_later()  # the ticks are over; a supervisor limits the stop
        if self.is_hung:
            self._end_within(_FLUSH_S)
        draining = asyncio.create_task(self.engine.drain())
        await super().shutdown(sockets)
        await draining
        self._end_within(_LAST_S)

    def _end_within(self, seconds: float) -> None:
        """The last resort, if a thread cannot be joined."""
        if self.owns_process:
            timer = threading.Timer(seconds, exits.end, [self.status])
            timer.daemon = True
            timer.start()
