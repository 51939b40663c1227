"""The process over real sockets, on a port the system picks: it answers, and it stops in order."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.encoder import Encoder
from encoders.contract.errors import WeightsError
from service.engine.backend import real_backend
from service.run.server import Server, make_server
from service.settings import Settings
from tests.support.paths import ROOT
from tests.support.serving import PNG, backend_of, image_bytes
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
SETTINGS = Settings(model=("fake:vit",), port=0)


@asynccontextmanager
async def listening(
    encoder: Encoder, server: Server | None = None
) -> AsyncIterator[tuple[Server, httpx.AsyncClient, asyncio.Task[None]]]:
    server = server or make_server(SETTINGS, backend=backend_of(encoder))
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


async def test_metrics_and_health_have_a_port_of_their_own() -> None:
    settings = SETTINGS.model_copy(update={"metrics_port": 0})
    async with listening(FakeEncoder(), make_server(settings, backend=backend_of())) as (server, client, _):
        await until(lambda: len(server.servers) == 2)
        port = server.servers[1].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as probe:
            assert (await probe.get("/health/ready")).status_code == 200
            assert "visiontower_connections 1.0" in (await probe.get("/metrics")).text
            assert (await probe.get("/models")).status_code == 404
        assert (await client.get("/metrics")).json()["port"] == port
        assert (await client.post("/embed", content=image_bytes(), headers=PNG)).status_code == 200


def test_a_metrics_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = [sys.executable, "-m", "service.cli", "serve", "--model", "fake:a", "--port", "0"]
        ended = subprocess.run(
            [*line, "--metrics-port", str(port)], stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "startup" not in ended.stderr


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


async def test_it_stops_by_itself_if_a_forward_hangs_and_answers_first() -> None:
    gate, entered, now = threading.Event(), threading.Event(), [0.0]

    def hold(batch: int) -> None:
        entered.set()
        assert gate.wait(30)

    encoder = FakeEncoder()
    server = make_server(SETTINGS, backend=backend_of(encoder), clock=lambda: now[0])
    async with listening(encoder, server) as (_, client, running):
        assert (await client.post("/embed", content=image_bytes(), headers=PNG)).status_code == 200
        encoder.before = hold
        request = asyncio.create_task(client.post("/embed", content=image_bytes(), headers=PNG))
        assert await asyncio.to_thread(entered.wait, 30)
        async with asyncio.timeout(30):
            while not server.is_hung:
                now[0] += 1
                server.engine.watch()
        assert (await request).status_code == 503
        await running
    gate.set()


PROGRAM = """
import sys, threading, time
from encoders.adapters.fake import FakeEncoder
from service.run import exits, server
from service.settings import Settings
from tests.support.serving import backend_of

def wait(what):
    print(what, file=sys.stderr, flush=True)
    threading.Event().wait(60)

def load(model):
    wait("loading")

def hold(batch):
    wait("in a forward")

still_s = None

def run(backend, **options):
    made = server.make_server(Settings(model=("fake:vit",), port=0), backend=backend, **options)
    made.owns_process = True
    made.run()
    exits.end(made.status)

encoder = FakeEncoder()
exits.end_at_once_on_signals()
"""


@contextmanager
def program(line: str) -> Iterator[subprocess.Popen[str]]:
    """Runs the line after PROGRAM; its log is to be read to the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + line], stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], words: str) -> str:
    """Its next line with these words."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"it ended without {words}")


def test_a_signal_during_a_load_ends_it_at_once() -> None:
    with program("run(backend_of(load=load))") as process:
        said(process, "loading")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


SERVES = """
import asyncio, httpx, logging
logging.basicConfig(level="INFO")
made = server.make_server(Settings(model=("fake:vit",), port=0), backend=backend_of(encoder){options})
made.owns_process = True
made.still_s = still_s

async def post():
    while not made.started:
        await asyncio.sleep(0.01)
    url = "http://127.0.0.1:%d/embed" % made.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(trust_env=False) as client:
        png, headers = image_bytes(), {{"content-type": "image/png"}}
        assert (await client.post(url, content=png, headers=headers)).status_code == 200
        encoder.before = hold
        await client.post(url, content=png, headers=headers)

from tests.support.serving import image_bytes
threading.Thread(target=lambda: asyncio.run(post()), daemon=True).start()
made.run()
exits.end(made.status)
"""


def test_so_does_one_during_the_imports_of_the_start() -> None:
    line = [sys.executable, "-m", "service.cli", "serve", "--model", "fake:a", "--port", "0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        said(process, "Waiting for application startup")  # next it imports torch
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_second_signal_does_not_wait() -> None:
    with program(SERVES.format(options="")) as process:
        said(process, "in a forward")
        process.send_signal(signal.SIGTERM)
        said(process, "Shutting down")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_a_stop_in_order_has_status_0() -> None:
    with program("import logging; logging.basicConfig(level='INFO'); run(backend_of(encoder))") as process:
        said(process, "Uvicorn running")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_process_whose_device_hangs_answers_and_ends_with_a_status_of_its_own() -> None:
    """Its clock runs fast."""
    with program(SERVES.format(options=", clock=lambda: 1000 * time.monotonic()")) as process:
        said(process, "in a forward")
        assert "longer than" in said(process, "The device hangs")
        said(process, "POST /embed 503")
        assert "has to be started anew" in said(process, "CRITICAL")
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(10) == 4


HOLDS_THE_LOCK = """
import ctypes
still_s = 3

def hold(batch):
    print("in a forward", file=sys.stderr, flush=True)
    ctypes.PyDLL(None).sleep(60)  # without releasing the interpreter
"""
WAITS_LONGER = """
still_s = 3
def hold(batch):
    print("in a forward", file=sys.stderr, flush=True)
    threading.Event().wait(5)
"""


def test_a_process_whose_event_loop_stands_still_says_where_it_stands_and_ends() -> None:
    with program(HOLDS_THE_LOCK + SERVES.format(options="")) as process:
        said(process, "in a forward")
        said(process, "Timeout")
        said(process, "in hold")
        assert process.wait(10) == 1


@pytest.mark.slow
def test_a_stop_in_order_may_take_longer() -> None:
    with program(WAITS_LONGER + SERVES.format(options="")) as process:
        said(process, "in a forward")
        process.send_signal(signal.SIGTERM)
        said(process, "POST /embed 200")
        assert process.wait(30) == 0


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
