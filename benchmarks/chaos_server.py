"""Our server, watched from inside, on a device that may fail and hang. `python -m benchmarks.chaos` starts it.

    python -m benchmarks.chaos_server --pauses FILE --fails 0.01 --hangs 0.001 serve --port 8000

FILE gets a line for each pause of the event loop: when it ended on time.monotonic, and its seconds.
"""

import argparse
import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from encoders.contract.encoder import Encoder, Forward
from encoders.contract.values import Outputs, Pixels
from service.cli.main import parser as commands
from service.cli.serve import settings_of
from service.engine.backend import Backend, real_backend
from service.run.interpreter import begin_loading
from service.run.server import make_server
from service.telemetry import logs

_TICK_S = 0.005
_NOTED_S = 0.02
_HANG_S = 8.0


class Flaky:
    """An encoder on a device that fails some forwards and hangs in others, at random."""

    def __init__(self, encoder: Encoder, *, fails: float, hangs: float) -> None:
        self._encoder = encoder
        self._fails = fails
        self._hangs = hangs
        self._random = random.Random(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        """As Encoder.begin, if it is well."""
        chance = self._random.random()
        if chance < self._fails:
            raise RuntimeError("the device fails on purpose")
        if chance < self._fails + self._hangs:
            time.sleep(_HANG_S)
        return self._encoder.begin(pixels, outputs)


def flaky(backend: Backend, *, fails: float, hangs: float) -> Backend:
    """The backend, with encoders that fail and hang."""
    return replace(backend, load=lambda model: Flaky(backend.load(model), fails=fails, hangs=hangs))


async def watch(file: Path) -> None:
    """Note the pauses of this event loop."""
    with file.open("a", buffering=1) as lines:
        while True:
            due = time.monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            if now - due >= _NOTED_S:
                lines.write(f"{now} {now - due}\n")


def watched(app: FastAPI, file: Path) -> None:
    """Watch the loop for as long as the app is up."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state:
            task = asyncio.create_task(watch(file))
            try:
                yield state
            finally:
                task.cancel()

    app.router.lifespan_context = lifespan


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser("python -m benchmarks.chaos_server", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pauses", type=Path, required=True)
    parser.add_argument("--fails", type=float, default=0.0, help="share of forwards [0]")
    parser.add_argument("--hangs", type=float, default=0.0, help="share of forwards [0]")
    given, rest = parser.parse_known_args()
    settings = settings_of(commands().parse_args(rest))
    begin_loading()
    logs.configure(settings.log_level, form=settings.log_format)
    server = make_server(settings, backend=flaky(real_backend(settings), fails=given.fails, hangs=given.hangs))
    app = server.config.app
    assert isinstance(app, FastAPI)
    watched(app, given.pauses)
    server.owns_process = True
    server.run()


if __name__ == "__main__":
    main()
