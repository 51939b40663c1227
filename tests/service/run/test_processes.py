"""Several server processes behind one port: they share the work, are counted as one, replaced, and end together."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic_settings import SettingsError

from service.errors import Unavailable
from service.http.siblings import Counts, Siblings, merged
from service.run.sockets import claimed, locked
from service.run.workers import Place, run, share
from service.settings import Settings
from service.telemetry.metrics import Metrics, ModelNow, Now
from tests.support.keys import bearer, file_of
from tests.support.serving import PNG, image_bytes

pytestmark = pytest.mark.anyio

STARTED = "process_start_time_seconds"


def exposition(*, forwards: int, ready: int, free: int) -> str:
    metrics = Metrics(["a"])
    models = {"a": ModelNow(queue_images=forwards, oldest_s=float(forwards), state="ready" if ready else "failing")}
    for _ in range(forwards):
        metrics.forward("a", size=None, items=1, ceiling=8, is_cut=False, queue_s=[], forward_s=0.02)
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


class Answering:
    """A process that answers /metrics with a text; with none it fails."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status, text = ("500 Oh", "no metric") if self.text is None else ("200 OK", self.text)
        head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(text.encode())}\r\n\r\n"
        writer.write((head + text).encode())
        writer.close()


async def listening(process: Answering, stack: AsyncExitStack) -> int:
    server = await stack.enter_async_context(await asyncio.start_server(process, "127.0.0.1", 0))
    port: int = server.sockets[0].getsockname()[1]
    return port


async def test_counts_never_go_down() -> None:
    """One does not answer, then ends, then another takes its place: no increase() is negative."""
    first, second = (
        Answering(exposition(forwards=2, ready=1, free=70)),
        Answering(exposition(forwards=3, ready=1, free=70)),
    )
    counts, seen = Counts(), []

    async def look(ports: dict[int, int]) -> dict[str, float]:
        found = values((await counts.exposition(ports)).decode())
        seen.append(found["visiontower_stage_seconds_count a forward"])
        return found

    async with AsyncExitStack() as stack:
        ports = {11: await listening(first, stack), 12: await listening(second, stack)}
        await look(ports)
        second.text = None
        missed = await look(ports)
        ended = await look({11: ports[11]})
        second.text = exposition(forwards=1, ready=1, free=70)
        replaced = await look({11: ports[11], 13: ports[12]})
    assert seen == [5, 5, 5, 6]
    assert missed["visiontower_queue_images a"] == 5, "what it last said"
    assert ended["visiontower_queue_images a"] == 2, "nothing waits in a process that has ended"
    assert replaced["visiontower_queue_images a"] == 3
    assert ended.keys() == missed.keys()


async def test_a_replacement_is_one_change_of_the_start() -> None:
    """The alert of restarts counts them. The process that ends may be the youngest."""
    older, younger = (Answering(f"# TYPE {STARTED} gauge\n{STARTED} {time}\n") for time in (100, 101))
    counts, seen = Counts(), []
    async with AsyncExitStack() as stack:
        one, other = await listening(older, stack), await listening(younger, stack)
        for ports in ({11: one, 12: other}, {11: one}, {11: one, 13: other}):
            if 13 in ports:
                younger.text = f"# TYPE {STARTED} gauge\n{STARTED} 200\n"
            seen.append(values((await counts.exposition(ports)).decode())[STARTED])
    assert seen == [101, 101, 200]


async def test_all_who_ask_during_a_round_share_the_next_one() -> None:
    """A round takes tenths of a second: a scrape behind twenty others would wait for too long."""
    asked = 0
    text = exposition(forwards=2, ready=1, free=70)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await Answering(text)(reader, writer)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        counts, ports = Counts(), {11: server.sockets[0].getsockname()[1]}
        told = await asyncio.gather(*(counts.exposition(ports) for _ in range(20)))
        assert asked == 2
        assert len(set(told)) == 1
        await counts.exposition(ports)
        assert asked == 3, "whoever asks later is told what is true then"


def shared(number: int) -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    return context.RawArray(ctypes.c_bool, number), context.RawArray(ctypes.c_uint64, number)


async def test_a_process_answers_for_all_with_its_parent_s_words_and_on_its_own_port_for_itself() -> None:
    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"everybody's")
        writer.close()

    async with await asyncio.start_server(tell, "127.0.0.1", 0) as parent:
        siblings = Siblings(0, 7, parent.sockets[0].getsockname()[1], *shared(2))
        assert await siblings.exposition(b"own", port=7) == b"own"
        assert await siblings.exposition(b"own", port=8000) == b"everybody's"
    with pytest.raises(Unavailable):
        await siblings.exposition(b"own", port=8000)


def served(place: Place, *, since: float) -> None:
    """Its process starts, and shows that it serves."""
    place.takes(multiprocessing.get_context("spawn").Process(), port=1)
    assert not place.is_stuck(1, now=since)


def test_a_process_that_lasted_is_replaced_at_once_and_others_later_each_time() -> None:
    place, pauses, now = Place(0), [], 1000.0
    for _ in range(8):
        served(place, since=now)
        place.ended(now=now + 1)
        pauses.append(place.due - now - 1)
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30]
    assert place.starts == 0, "it did start"
    served(place, since=now)
    place.ended(now=now + 60)
    assert place.due == now + 60


def test_processes_that_end_before_they_serve_are_counted() -> None:
    place = Place(0)
    for expected in (1, 2, 3):
        place.takes(multiprocessing.get_context("spawn").Process(), port=1)
        assert not place.is_stuck(0, now=5.0)
        place.ended(now=5.0)
        assert place.starts == expected
    served(place, since=5.0)
    place.ended(now=6.0)
    assert place.starts == 0


def test_a_process_whose_loop_stands_still_for_a_hundred_looks_is_stuck_but_not_while_it_loads() -> None:
    place = Place(0)
    place.takes(multiprocessing.get_context("spawn").Process(), port=1)
    assert not any(place.is_stuck(0, now=1.0) for _ in range(1000))
    assert [place.is_stuck(beats, now=1.0) for beats in (1, *[2] * 101)].index(True) == 101
    assert not place.is_stuck(3, now=1.0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def test_a_port_that_somebody_listens_on_is_not_shared_whoever_it_is() -> None:
    port = free_port()
    for is_shared in (False, True):
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(is_shared))
            other.bind(("127.0.0.1", port))
            other.listen()
            with pytest.raises(OSError, match="in use"):
                claimed("127.0.0.1", port)


def test_two_services_that_do_not_listen_yet_see_each_other() -> None:
    port = free_port()
    with claimed("127.0.0.1", port) as one, claimed("127.0.0.1", port) as other, locked(one):
        with pytest.raises(OSError, match="another visiontower serve has it"):
            locked(other)
        with claimed("127.0.0.1", 0) as elsewhere, locked(elsewhere):
            pass
    with claimed("127.0.0.1", port) as one, locked(one):
        pass


def test_each_process_has_its_part() -> None:
    part = share(Settings(processes=4, vram_budget=2**32, cuda_graph_bytes=2**30, queue_images=300))
    assert (part.vram_budget, part.cuda_graph_bytes, part.queue_images, part.processes) == (2**30, 2**28, 300, 1)
    other = share(Settings(processes=4, preprocess_threads=3))
    assert (other.vram_share, other.preprocess_threads) == (0.2, 3)


def test_without_a_folder_for_temporary_files_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it sets it
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    settings = Settings(processes=2, keys_file=file_of(tmp_path / "keys.toml", a={}))
    with pytest.raises(SettingsError, match="Mount /tmp, or set keys_usage"):
        run(settings, lambda *_: None)


async def test_who_is_ready_waits_for_the_others() -> None:
    started, beats = shared(2)
    waiting = asyncio.create_task(Siblings(1, 2, 3, started, beats).together())
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
        assert counted["visiontower_requests_total native /embed 200"] == 24
        assert len(psutil.Process(process.pid).children()) >= 2
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0


@pytest.mark.slow
async def test_all_of_them_listen_on_the_port_for_metrics_too() -> None:
    port = free_port()
    async with serving("--processes", "2", "--metrics-port", str(port)) as (process, client):
        for _ in range(8):
            assert await embeds(client)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as probe:
            counted = values((await probe.get("/metrics")).text)
            assert (await probe.get("/health/ready")).status_code == 200
        assert counted["visiontower_requests_total native /embed 200"] == 8
        assert (await client.get("/metrics")).status_code == 404
        listening = [c.laddr.port for each in servers_of(process) for c in each.net_connections("tcp")]
        assert listening.count(port) == 2


def servers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]


async def said(process: subprocess.Popen[str], *words: str) -> list[str]:
    """Wait for these words in its log, one after the other; gives the lines."""
    assert process.stderr is not None
    lines = []
    async with asyncio.timeout(60):
        for word in words:
            line = await asyncio.to_thread(process.stderr.readline)
            while word not in line:
                assert line, f"it ended without {word}"
                line = await asyncio.to_thread(process.stderr.readline)
            lines.append(line)
    return lines


async def embeds(client: httpx.AsyncClient) -> bool:
    return (await client.post("/embed", content=image_bytes(), headers=PNG)).status_code == 200


async def requests_counted(client: httpx.AsyncClient) -> float:
    return values((await client.get("/metrics")).text)["visiontower_requests_total native /embed 200"]


@pytest.mark.slow
async def test_one_that_is_stuck_is_killed_and_replaced_while_the_other_serves() -> None:
    async with serving("--processes", "2") as (process, client):
        for _ in range(8):
            assert await embeds(client)
        before = await requests_counted(client)
        servers_of(process)[0].suspend()
        await said(process, "is stuck", "has ended with status -9")
        assert await embeds(client)
        assert await requests_counted(client) >= before
        await said(process, "Application startup complete")
        counted = await requests_counted(client)
        for _ in range(8):
            assert await embeds(client)
        assert await requests_counted(client) == counted + 8
        assert len(servers_of(process)) == 2


@pytest.mark.slow
async def test_nobody_shares_their_port_and_none_outlives_their_parent() -> None:
    async with serving("--processes", "2") as (process, client):
        line = [sys.executable, "-m", "service.cli", "serve", "--model", "fake:a", "--port", str(client.base_url.port)]
        other = await asyncio.to_thread(
            subprocess.run, [*line, "--processes", "2"], stderr=subprocess.PIPE, text=True, timeout=60
        )
        assert other.returncode == 1
        assert "cannot listen" in other.stderr
        servers = servers_of(process)
        assert len(servers) == 2
        servers[0].suspend()  # whatever it is at
        process.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, servers, 30)
        assert alive == []


@pytest.mark.slow
async def test_an_access_key_has_one_count_in_all_of_them(tmp_path: Path) -> None:
    """And their parent still gets everybody's metrics: it has no key."""
    path = file_of(tmp_path / "keys.toml", a={"images_per_day": 9, "requests_per_second": 1000}, scraper={})
    async with serving("--processes", "2", "--keys-file", str(path)) as (_, client):
        assert (await client.get("/metrics")).status_code == 401
        statuses = [
            (await client.post("/embed", content=image_bytes(), headers=PNG | bearer("a"))).status_code
            for _ in range(24)
        ]
        assert (statuses.count(200), statuses.count(429)) == (9, 15)
        counted = values((await client.get("/metrics", headers=bearer("scraper"))).text)
        assert counted["visiontower_key_requests_total a 200"] == 9
        assert counted["visiontower_key_refused_total a images_per_day"] == 15
