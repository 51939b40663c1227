"""The process: loads real encoders, listens, and stops in order. Of uvicorn, only connection.py knows more."""

import asyncio
import ctypes
import gc
import logging
import socket
from contextlib import suppress
from functools import partial
from typing import Any

import uvicorn

from service.engine.backend import Backend
from service.engine.engine import Engine
from service.http.app import create_app
from service.http.siblings import Siblings
from service.run import workers
from service.run.connection import Connection, Door
from service.settings import Settings
from service.telemetry import logs

_log = logging.getLogger(__name__)

_OTHER_FILES = 512
"""Open files of a process beside its connections: weights, libraries, sockets of its own."""
_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def serve(settings: Settings) -> None:
    """Serve until a signal. Admitted requests are finished first; a second signal does not wait for them.

    Raises SystemExit with a code other than 0 if an encoder cannot be loaded, or the device thread is lost.
    """
    if settings.processes == 1:
        _serve(settings)
        return
    logs.configure(settings.log_level)
    if code := workers.run(settings, _serve):
        raise SystemExit(code)


def _serve(settings: Settings, siblings: Siblings | None = None, sockets: list[socket.socket] | None = None) -> None:
    """In this process. sockets: bound already; None to bind the settings' address."""
    _share_heaps()
    _allow_connections(settings.max_connections)
    gc.disable()  # until all is loaded: a quarter of the time of the imports was spent looking for garbage
    logs.configure(settings.log_level)
    server = make_server(settings, siblings=siblings)
    server.run(sockets)
    if server.is_device_lost:
        raise SystemExit(3)


def make_server(settings: Settings, *, backend: Backend | None = None, siblings: Siblings | None = None) -> "Server":
    """The server, not yet running. It stops by itself if the device thread is lost. backend: as of Engine."""
    app = create_app(settings, backend=backend, siblings=siblings)
    door: Any = partial(Connection, door=Door(settings, app.state.metrics))  # uvicorn calls it as it would a class
    return Server(
        uvicorn.Config(
            app,
            http=door,
            ws="none",
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            proxy_headers=False,  # whom a proxy speaks for is of no interest here
            timeout_graceful_shutdown=int(settings.drain_timeout_s) + 5,  # ours comes first, and answers
        )
    )


def _share_heaps() -> None:
    """Let glibc's malloc give all threads two heaps together, where it would give each its own.

    Each keeps what was freed in it: the process grew by a twelfth over a hundred thousand requests. Elsewhere nothing.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _allow_connections(number: int) -> None:
    """Let the process have that many sockets beside its other files, as far as the system's hard limit goes."""
    with suppress(ImportError):  # not on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = number + _OTHER_FILES
        if hard != resource.RLIM_INFINITY and wanted > hard:
            _log.warning("%d connections need %d open files, and the system allows %d", number, wanted, hard)
            wanted = hard
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server(uvicorn.Server):
    """Drains in order: stop listening and admitting, answer the admitted requests, then end."""

    @property
    def engine(self) -> Engine:
        """Of the app, once it has started."""
        engine: Engine = self.config.loaded_app.state.engine
        return engine

    @property
    def is_device_lost(self) -> bool:
        """Whether a device thread ended on its own."""
        return self.started and self.engine.threads.is_lost

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn.Server; afterwards the garbage collector need not look at the objects that are here to stay.

        They are some hundred thousand objects of torch and the models: looking through them held up all requests for a
        quarter of a second every few seconds.
        """
        await super().startup(sockets)
        gc.freeze()
        gc.enable()

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn.Server, ten times a second: whether to stop."""
        return await super().on_tick(counter) or self.is_device_lost

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn.Server, which waits for open answers here; drain sees to it that they come, or fail by name."""
        draining = asyncio.create_task(self.engine.drain())
        await super().shutdown(sockets)
        await draining
