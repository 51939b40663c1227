"""A replica: the whole service in one actor of Ray Serve. The queue, the batches and the refusals are its own."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from encoders.contract.errors import VisiontowerError
from service.cluster.join import work_in
from service.cluster.share import Share
from service.engine.engine import Engine
from service.http.app import create_app
from service.run import heap, interpreter
from service.run.ray import autoscaling
from service.run.ray.bridge import Bridge
from service.run.ray.messages import ForProxy
from service.settings import Settings
from service.telemetry import logs

_LOOK_S = 0.1
_PASS_ON_S = 5.0


class Replica:
    """Ray builds it, asks for its app, and calls its hooks. Its attribute must not be `app`, which Ray has.

    folder: of whoever built the application, for relative paths in the settings.
    """

    def __init__(self, settings: Settings, share: Share, folder: str) -> None:
        work_in(folder)
        interpreter.begin_loading()
        logs.configure(settings.log_level, form=settings.log_format)
        self._settings = share.settings(settings)
        self._asgi: FastAPI | None = None
        self._looking: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, started: of an app that fails to start Ray does not tell why. Raises RuntimeError, which does.

        Ray ends it by its lifespan, which drains.
        """
        app = self._asgi = create_app(self._settings)
        app.add_middleware(ForProxy)
        serving = AsyncExitStack()
        try:
            await serving.enter_async_context(app.router.lifespan_context(app))
        except VisiontowerError as error:
            raise RuntimeError(str(error)) from error
        interpreter.loaded()
        looking = self._looking = asyncio.create_task(_look_after(self._engine))

        @asynccontextmanager
        async def started(app: FastAPI) -> AsyncIterator[None]:
            async with serving:
                yield
                looking.cancel()

        app.router.lifespan_context = started
        return app

    @property
    def _engine(self) -> Engine:
        assert self._asgi is not None
        engine: Engine = self._asgi.state.engine
        return engine

    async def check_health(self) -> None:
        """Raises RuntimeError if only another process can go on; Ray then starts one in its place."""
        engine = self._engine
        if engine.threads.is_lost:
            raise RuntimeError("a device thread has ended")
        if engine.is_hung:
            raise RuntimeError(str(engine.threads.refusal))
        if self._looking is not None and self._looking.done() and not self._looking.cancelled():
            raise RuntimeError(f"nothing looks after the engine: {self._looking.exception()!r}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the policy is told."""
        engine = self._engine
        oldest_s = max(engine.threads.waiting(model)[1] for model in engine.models.ids)
        return {autoscaling.PRESSURE: autoscaling.pressure(oldest_s=oldest_s, fullness=engine.admission.fullness)}


async def _look_after(engine: Engine) -> None:
    """What run/server.py does between requests, and the metrics for Ray."""
    from ray import serve
    from ray.util.metrics import Gauge

    replica = serve.get_replica_context()
    bridge = Bridge(Gauge, labels={"application": replica.app_name, "replica": replica.replica_tag})
    memory = heap.Heap(clock=time.monotonic)
    due = 0.0
    while True:
        engine.watch()
        memory.look(is_idle=engine.admission.is_empty)
        if (now := time.monotonic()) >= due:
            due = now + _PASS_ON_S
            bridge.pass_on(engine.metrics.families(engine.now()))
        await asyncio.sleep(_LOOK_S)
