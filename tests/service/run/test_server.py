"""The process over real sockets, on a port the system picks: it answers, and it stops in order."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.encoder import Encoder
from encoders.contract.errors import WeightsError
from service.engine.backend import real_backend
from service.run.server import Server, make_server
from service.settings import Settings
from tests.support.serving import PNG, backend_of, image_bytes

pytestmark = pytest.mark.anyio
SETTINGS = Settings(model=("fake:vit",), port=0)


@asynccontextmanager
async def listening(encoder: Encoder) -> AsyncIterator[tuple[Server, httpx.AsyncClient, asyncio.Task[None]]]:
    server = make_server(SETTINGS, backend=backend_of(encoder))
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:
            await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield server, client, running
    server.should_exit = True
    await running


async def test_it_answers_over_http() -> None:
    async with listening(FakeEncoder()) as (_, client, _):
        response = await client.post("/embed", content=image_bytes(), headers=PNG)
        ready = await client.get("/health/ready")
    assert response.json()["data"][0]["tokens"]["shape"] == [16, 12]
    assert ready.status_code == 200


async def test_told_to_stop_it_first_answers_what_it_has_admitted() -> None:
    gate, entered = threading.Event(), threading.Event()

    def hold(batch: int) -> None:
        entered.set()
        assert gate.wait(30)

    encoder = FakeEncoder()
    async with listening(encoder) as (server, client, running):
        encoder.before = hold
        request = asyncio.create_task(client.post("/embed", content=image_bytes(), headers=PNG))
        assert await asyncio.to_thread(entered.wait, 30)
        server.should_exit = True
        engine = server.engine
        async with asyncio.timeout(30):
            while engine.admission.is_open:
                await asyncio.sleep(0)
        assert not running.done()
        gate.set()
        assert (await request).status_code == 200
        await running


async def test_a_client_that_hangs_up_frees_its_place() -> None:
    gate, entered = threading.Event(), threading.Event()

    def hold(batch: int) -> None:
        entered.set()
        assert gate.wait(30)

    encoder = FakeEncoder()
    async with listening(encoder) as (server, client, _):
        encoder.before = hold
        request = asyncio.create_task(client.post("/embed", content=image_bytes(), headers=PNG))
        assert await asyncio.to_thread(entered.wait, 30)
        admission = server.engine.admission
        assert admission.inside("images") == 1
        request.cancel()
        async with asyncio.timeout(30):
            while admission.inside("images"):
                await asyncio.sleep(0)
        gate.set()


async def test_it_stops_by_itself_if_the_device_thread_is_lost() -> None:
    def end(batch: int) -> None:
        raise SystemExit

    encoder = FakeEncoder()
    async with listening(encoder) as (_, client, running):
        encoder.before = end
        response = await client.post("/embed", content=image_bytes(), headers=PNG)
        await running
    assert response.status_code == 503


async def test_it_does_not_start_without_its_weights(caplog: pytest.LogCaptureFixture) -> None:
    def load(model: str) -> Encoder:
        raise WeightsError("no such file")

    server = make_server(SETTINGS, backend=backend_of(load=load))
    with pytest.raises(SystemExit) as exit:
        await server.serve()
    assert exit.value.code == 3
    assert "cannot serve fake:vit: no such file" in caplog.text


def test_real_encoders_come_from_the_registry_by_their_id() -> None:
    backend = real_backend(Settings(model=("fake:a",), device="cpu", dtype="float32"))
    assert backend.load("fake:a").spec.id == backend.blueprint("fake:a", None).spec.id == "fake:a"
    assert backend.memory().device == "cpu"


def test_real_encoders_run_in_as_many_lanes_as_the_settings_say() -> None:
    assert real_backend(Settings(model=("fake:a",), device="cpu", dtype="float32", lanes=2)).lanes().number == 2
