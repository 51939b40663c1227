"""The service in process: real app, real threads, fake encoders, no socket."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from opentelemetry.trace import TracerProvider
from PIL import Image

from encoders.adapters.fake import FakeBlueprint, FakeEncoder, FakeMemory
from encoders.contract.encoder import Encoder
from encoders.memory.device import Memory
from service.engine.backend import Backend
from service.http.app import create_app
from service.settings import Settings

PNG = {"content-type": "image/png"}


class Gate:
    """Holds forwards while closed."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.entered = threading.Event()

    def __call__(self, batch: int) -> None:
        self.entered.set()
        assert self.is_open.wait(30)

    def close(self) -> None:
        self.entered.clear()
        self.is_open.clear()

    async def someone_inside(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)


def image_bytes(
    *,
    size: tuple[int, int] = (40, 30),
    colour: Any = (200, 30, 90),
    mode: str = "RGB",
    image_format: str = "PNG",
    **save: Any,
) -> bytes:
    """A plain image; `size` is (width, height), as Pillow has it."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, image_format, **save)
    return buffer.getvalue()


def noise(seed: int, size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def backend_of(
    *encoders: Encoder, load: Callable[[str], Encoder] | None = None, memory: Memory | None = None
) -> Backend:
    """A device with these encoders on call, and room for anything unless `memory` says otherwise."""
    by_id = {encoder.spec.id: encoder for encoder in encoders or (FakeEncoder(),)}
    blueprints = {model: FakeBlueprint(encoder.spec) for model, encoder in by_id.items()}
    return Backend(
        load=load or by_id.__getitem__,
        blueprint=lambda model, dtype: blueprints[model],
        memory=lambda: memory or FakeMemory(2**40),
    )


def app_of(
    *encoders: Encoder, memory: Memory | None = None, tracer_provider: TracerProvider | None = None, **settings: Any
) -> FastAPI:
    models = tuple(encoder.spec.id for encoder in encoders) or ("fake:vit",)
    backend = backend_of(*encoders, memory=memory)
    return create_app(Settings(model=models, **settings), backend=backend, tracer_provider=tracer_provider)


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


@asynccontextmanager
async def serving(*encoders: Encoder, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a started service; without encoders, of one fake. options: as of `app_of`."""
    async with client_of(app_of(*encoders, **options)) as client:
        yield client


def assert_problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The answer is this problem; gives its members."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["status"], problem["type"]) == (status, status, f"/problems/{slug}"), problem
    return problem
