"""Several server processes behind one port: they share the work, are counted as one, and end together."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.http.siblings import Siblings, merged
from service.run.workers import share
from service.settings import Settings
from service.telemetry.metrics import Metrics, ModelNow, Now
from tests.support.serving import PNG, image_bytes

pytestmark = pytest.mark.anyio


def exposition(*, forwards: int, ready: int, free: int) -> str:
    metrics = Metrics(["a"])
    models = {"a": ModelNow(queue_images=forwards, oldest_s=float(forwards), is_ready=bool(ready))}
    for _ in range(forwards):
        metrics.forward("a", size=None, items=1, is_cut=False, queue_s=[], forward_s=0.02)
    return metrics.exposition(Now(models, "cpu", {"weights": 10, "free": free}, {})).decode()


def values(text: str) -> dict[str, float]:
    return {
        f"{sample.name} {' '.join(value for _, value in sorted(sample.labels.items()))}".strip(): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counts_add_up_and_of_states_the_worst_is_shown() -> None:
    one, other = exposition(forwards=1, ready=1, free=70), exposition(forwards=3, ready=0, free=60)
    both = values(merged([one, other]).decode())
    assert both["visiontower_stage_seconds_count a forward"] == 4
    assert both["visiontower_stage_seconds_bucket 0.025 a forward"] == 4
    assert both["visiontower_queue_images a"] == 4
    assert both["visiontower_queue_oldest_seconds a"] == 3
    assert both["visiontower_model_ready a"] == 0
    assert both["visiontower_vram_bytes cpu weights"] == 20
    assert both["visiontower_vram_bytes cpu free"] == 70
    assert both.keys() == values(one).keys()


def test_one_alone_stays_what_it_is() -> None:
    text = exposition(forwards=2, ready=1, free=70)
    assert values(merged([text]).decode()) == values(text)


async def test_a_process_that_fails_is_left_out() -> None:
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 Oh\r\nConnection: close\r\nContent-Length: 9\r\n\r\nno metric")
        writer.close()

    started = multiprocessing.get_context("spawn").RawArray(ctypes.c_bool, 2)
    text = exposition(forwards=2, ready=1, free=70)
    async with await asyncio.start_server(fail, "127.0.0.1", 0) as server:
        other = server.sockets[0].getsockname()[1]
        found = await Siblings((0, other), 0, started).exposition(text.encode(), port=None)
    assert values(found.decode()) == values(text)


def test_each_process_has_its_part() -> None:
    part = share(Settings(processes=4, vram_budget=2**32, queue_images=300))
    assert (part.vram_budget, part.queue_images, part.processes) == (2**30, 300, 1)
    other = share(Settings(processes=4, preprocess_threads=3))
    assert (other.vram_share, other.preprocess_threads) == (0.2, 3)


async def test_who_is_ready_waits_for_the_others() -> None:
    started = multiprocessing.get_context("spawn").RawArray(ctypes.c_bool, 2)
    waiting = asyncio.create_task(Siblings((1, 2), 2, started).together())
    await asyncio.sleep(0)
    assert (list(started), waiting.done()) == ([False, True], False)
    started[0] = True
    await waiting


def test_one_that_cannot_start_ends_all_that_wait_for_it() -> None:
    line = [sys.executable, "-m", "service.cli", "serve", "--model", "nobody:a", "--port", "0", "--processes", "2"]
    assert subprocess.run(line, stderr=subprocess.DEVNULL, timeout=60).returncode not in (0, None)


@asynccontextmanager
async def serving(*flags: str) -> AsyncIterator[tuple[subprocess.Popen[str], httpx.AsyncClient]]:
    line = [sys.executable, "-m", "service.cli", "serve", "--model", "fake:a", "--port", "0", *flags]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr is not None
        ready = 0
        address = ""
        while ready < 2:
            said = await asyncio.to_thread(process.stderr.readline)
            assert said, "it ended"
            ready += "Application startup complete" in said
            if "processes serve" in said:
                address = said.split("serve ")[1].split('"')[0]
        # one process is heard on the port as soon as it has started; connections are new for every request
        async with httpx.AsyncClient(
            base_url=address, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        ) as client:
            yield process, client
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close() if process.stderr else None


async def test_they_answer_together_are_counted_as_one_and_end_in_order() -> None:
    async with serving("--processes", "2") as (process, client):
        for _ in range(24):
            assert (await client.post("/embed", content=image_bytes(), headers=PNG)).status_code == 200
        counted = values((await client.get("/metrics")).text)
        assert counted["visiontower_requests_total /embed 200"] == 24
        assert len(psutil.Process(process.pid).children()) >= 2
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0


async def test_if_one_is_lost_all_end() -> None:
    async with serving("--processes", "2") as (process, _):
        servers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
        assert len(servers) == 2
        servers[0].kill()
        assert await asyncio.to_thread(process.wait, 30) == signal.SIGKILL
        assert not any(server.is_running() and server.status() != "zombie" for server in servers)
