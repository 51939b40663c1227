"""Clients of our own against the service in process, and against one that listens."""

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from encoders.contract.encoder import Encoder
from service.run.server import make_server
from service.settings import Settings
from tests.support.serving import app_of, backend_of
from visiontower_client import AsyncClient


@asynccontextmanager
async def client_of(app: FastAPI, **options: Any) -> AsyncIterator[AsyncClient]:
    """Of an app that is started for it."""
    async with (
        app.router.lifespan_context(app),
        AsyncClient("http://service", transport=httpx.ASGITransport(app), **options) as client,
    ):
        yield client


@asynccontextmanager
async def client(*encoders: Encoder, **settings: Any) -> AsyncIterator[AsyncClient]:
    """Of a service with these encoders, or one fake."""
    async with client_of(app_of(*encoders, **settings)) as found:
        yield found


@contextmanager
def listening(*encoders: Encoder, **settings: Any) -> Iterator[str]:
    """The address of a server with these encoders, or one fake, on a thread of its own."""
    models = tuple(encoder.spec.id for encoder in encoders) or ("fake:vit",)
    server = make_server(Settings(model=models, port=0, **settings), backend=backend_of(*encoders))
    is_up = threading.Event()

    async def serve() -> None:
        running = asyncio.create_task(server.serve())
        while not server.started and not running.done():
            await asyncio.sleep(0)
        is_up.set()
        await running

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert is_up.wait(30)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def command(*flags: str) -> Iterator[str]:
    """The address of `visiontower serve`, with a fake encoder, in a process of its own."""
    line = [sys.executable, "-m", "service.cli", "serve", "--model", "fake:vit", "--port", "0", *flags]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = ""
            while (found := re.search(r"running on (http://[\w.]+:\d+)", said)) is None:
                said = process.stderr.readline()
                assert said, "it ended"
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
            yield found[1]
        finally:
            process.terminate()
            process.wait(60)
