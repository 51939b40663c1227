"""The process: loads real encoders, listens, and stops in order. The only module that knows uvicorn."""

import asyncio
import ctypes
import gc
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import uvicorn

from encoders.adapters import registry
from encoders.contract.encoder import Encoder, Placement
from encoders.memory.device import Memory
from encoders.memory.prediction import ALLOCATOR
from service.engine.engine import Backend, Service
from service.http.app import create_app
from service.run import workers as processes
from service.run.workers import Place
from service.settings import Settings
from service.telemetry import logs

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
    if code := processes.run(settings, _serve):
        raise SystemExit(code)


def _serve(settings: Settings, place: Place | None = None, sockets: list[socket.socket] | None = None) -> None:
    """In this process. sockets: bound already; None to bind what the settings say."""
    _share_heaps()
    gc.disable()  # until all is loaded: a quarter of the time of the imports was spent looking for garbage
    logs.configure(settings.log_level)
    lost = threading.Event()
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", ALLOCATOR)  # before torch is imported
    server = make_server(settings, backend=real_backend(settings), on_lost=lost.set, place=place)
    server.run(sockets)
    if lost.is_set():
        raise SystemExit(3)


def make_server(
    settings: Settings, *, backend: Backend, on_lost: Callable[[], None] = lambda: None, place: Place | None = None
) -> uvicorn.Server:
    """The server, not yet running. It stops by itself, after on_lost, if the device thread is lost."""

    def stop() -> None:
        on_lost()
        server.should_exit = True

    server = _Server(
        uvicorn.Config(
            create_app(settings, backend=backend, on_lost=stop, place=place),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            proxy_headers=False,  # whom a proxy speaks for is of no interest here
            timeout_graceful_shutdown=int(settings.drain_timeout_s) + 5,  # ours comes first, and answers
        )
    )
    return server


def real_backend(settings: Settings) -> Backend:
    """Encoders as the settings say. `auto` is resolved when it is first asked for: that is where torch is needed."""

    @cache
    def placement() -> Placement:
        from encoders.runtime.device import resolve  # imports torch

        return resolve(settings.device, settings.dtype, settings.runtime, settings.lanes)

    def memory() -> Memory:
        from encoders.runtime.device_memory import memory_of

        return memory_of(placement().device)

    def load(model: str) -> Encoder:
        take_cores(1)
        return registry.load(model, placement())

    def take_cores(part: int) -> None:
        from encoders.runtime import device

        device.take_cores(part)

    return Backend(
        load=load,
        blueprint=lambda model, dtype: registry.blueprint(model, dtype=dtype or placement().dtype),
        memory=memory,
        lanes=lambda: placement().lanes,
        take_cores=take_cores,
    )


def _share_heaps() -> None:
    """Let glibc's malloc give all threads two heaps together, where it would give each its own.

    Each keeps what was freed in it: the process grew by a twelfth over a hundred thousand requests. Elsewhere nothing.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


class _Server(uvicorn.Server):
    """Drains in order: stop listening and admitting, answer what was admitted, then end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn.Server; afterwards what is there is there to stay, and the garbage collector need not look at it.

        It is some hundred thousand objects of torch and the models: looking through them held up all requests for a
        quarter of a second every few seconds.
        """
        await super().startup(sockets)
        gc.freeze()
        gc.enable()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn.Server, which waits for open answers here; drain sees to it that they come, or fail by name."""
        service: Service = self.config.loaded_app.state.service
        draining = asyncio.create_task(service.drain())
        await super().shutdown(sockets)
        await draining
