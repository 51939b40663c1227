"""Two replicas on a cluster of this machine, under load. The tests share the cluster, and run in their order."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from service.settings import PREFIX
from tests.support.paths import ROOT
from tests.support.process import served
from tests.support.prometheus import free_port
from tests.support.serving import PNG, noise

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.anyio]

CALLERS = 4
PAUSE_S = 0.02
"""Of a caller between two requests: replicas that start need the cores too."""
PATIENCE_S = 120
FLAGS = ("--model", "demo:vit", "--replicas", "2", "--replica-cpus", "0.5")


@dataclass
class Cluster:
    """The command that serves. url: of the proxy. address: by which others join. folder: of its logs."""

    process: subprocess.Popen[str]
    url: str
    address: str
    folder: Path
    environment: dict[str, str]

    def replicas(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.name().startswith("ray::ServeRepl")]

    def answered(self) -> Counter[str]:
        """Request id -> how often a replica has answered it, by the logs of all that there ever were."""
        logs = self.folder.glob("ray/session_latest/logs/worker-*.err")
        lines = (line for log in logs for line in log.read_text().splitlines() if '"request_id"' in line)
        return Counter(json.loads(line)["request_id"] for line in lines)

    async def redeploy(self, **args: object) -> None:
        program = "tests.service.run.ray.redeploy"
        command = [sys.executable, "-m", program, self.address, json.dumps(args)]
        ran = await asyncio.create_subprocess_exec(*command, env=self.environment, cwd=ROOT)
        assert await ran.wait() == 0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Its folder's name is short: sockets are in it, whose paths may have a hundred characters."""
    with TemporaryDirectory(prefix="vt", dir="/tmp") as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "RAY_"))},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0" * 32,
            "RAY_TMPDIR": folder,
            "RAY_raylet_start_wait_time_s": str(PATIENCE_S),
            "RAY_metrics_report_interval_ms": "1000",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        port = free_port()
        line = [sys.executable, "-m", "service.cli", "serve", "--ray", "local", "--port", str(port), *FLAGS]
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
            try:
                address = address_of(process)
                yield Cluster(process, f"http://127.0.0.1:{port}", address, Path(folder), environment)
            finally:
                process.terminate()
                process.wait(PATIENCE_S)


def address_of(process: subprocess.Popen[str]) -> str:
    """Of the cluster, from when it serves. Fails with its log if it ends before."""
    assert process.stderr is not None
    address, log = "", []
    for said in process.stderr:
        log.append(said)
        if found := re.search(r"the cluster is at ([\d.]+:\d+)", said):
            address = found[1]
        if "running on http" in said:
            rest = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
            rest.start()  # a full pipe would stop it
            return address
    raise AssertionError("".join(log))


async def embed(client: httpx.AsyncClient, name: str) -> httpx.Response:
    return await client.post("/embed", content=noise(1), headers={**PNG, "X-Request-Id": name})


@dataclass
class Load:
    """What callers have been answered who ask again and again: request id -> status. Each id is of one request."""

    statuses: dict[str, int] = field(default_factory=dict)

    def failed(self) -> dict[str, int]:
        return {name: status for name, status in self.statuses.items() if status != 200}


@asynccontextmanager
async def load(client: httpx.AsyncClient, name: str) -> AsyncIterator[Load]:
    """Callers at work inside."""
    found, is_over = Load(), False

    async def call(caller: int) -> None:
        number = 0
        while not is_over:
            request, number = f"{name}-{caller}-{number}", number + 1
            found.statuses[request] = (await embed(client, request)).status_code
            await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as tasks:
        for caller in range(CALLERS):
            tasks.create_task(call(caller))
        while len(found.statuses) < 2 * CALLERS:
            await asyncio.sleep(0.01)
        yield found
        is_over = True


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=PATIENCE_S) as client:
        yield client


async def test_the_answers_are_those_of_the_plain_server(cluster: Cluster, client: httpx.AsyncClient) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with served("--model", "demo:vit") as url:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as plain:
            for accept in ("application/x-npy", "application/vnd.safetensors"):
                asked = {**PNG, "Accept": accept, "X-Request-Id": "same"}
                here = await client.post("/embed?output=tokens", content=noise(1), headers=asked)
                there = await plain.post("/embed?output=tokens", content=noise(1), headers=asked)
                assert (here.status_code, there.status_code) == (200, 200)
                assert here.content == there.content
                assert here.headers.get_list("x-request-id") == ["same"]


async def test_one_scrape_sees_all_replicas_under_our_names(cluster: Cluster, client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        seen: set[str] = set()
        while len(seen) < 2:
            await embed(client, "scraped")
            for sample in await scraped(cluster, client, "ray_visiontower_requests_total"):
                if (sample.labels["route"], sample.labels["status"]) == ("/embed", "200") and sample.value:
                    seen.add(sample.labels["replica"])


async def scraped(cluster: Cluster, client: httpx.AsyncClient, name: str) -> list[Sample]:
    """As Prometheus would: from the targets in Ray's file, some of which do not answer yet."""
    (found,) = json.loads((cluster.folder / "ray/prom_metrics_service_discovery.json").read_text())
    samples = []
    for target in found["targets"]:
        with suppress(httpx.TransportError):
            text = (await client.get(f"http://{target}/metrics")).text
            samples += [each for family in text_string_to_metric_families(text) for each in family.samples]
    return [each for each in samples if each.name == name]


async def test_of_a_killed_replica_each_request_is_answered_once_or_refused(
    cluster: Cluster, client: httpx.AsyncClient
) -> None:
    """What it had in hand gets 500 from the proxy, which does not try again; another attempt is answered."""
    victim, other = cluster.replicas()
    async with load(client, "killed") as found:
        before = len(found.statuses)
        victim.send_signal(signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while len(found.statuses) < before + 10 * CALLERS or len(cluster.replicas()) < 2:
                await asyncio.sleep(0.05)
    assert other in cluster.replicas()
    failed = found.failed()
    assert len(failed) <= CALLERS
    assert set(failed.values()) <= {500}
    answered = cluster.answered()
    assert {answered[name] for name in found.statuses if name not in failed} == {1}
    assert {answered[name] for name in failed} <= {0}
    for name in failed:
        assert (await embed(client, f"{name}-again")).status_code == 200


async def test_an_update_to_fewer_replicas_fails_no_request(cluster: Cluster, client: httpx.AsyncClient) -> None:
    before = {replica.pid for replica in cluster.replicas()}
    settings = {"model": ["demo:vit"], "max_images": 1, "queue_images": 300}
    async with load(client, "updated") as found:
        await cluster.redeploy(settings=settings, replicas=1, cpus=0.5)
        async with asyncio.timeout(PATIENCE_S):
            while len(cluster.replicas()) > 1:
                await asyncio.sleep(0.05)
    assert found.failed() == {}
    assert {replica.pid for replica in cluster.replicas()}.isdisjoint(before)
    two = await client.post("/embed", files=[("image", noise(1)), ("image", noise(2))])
    assert two.json()["type"] == "/problems/too-many-images"
    answered = cluster.answered()
    assert {answered[name] for name in found.statuses} == {1}


async def test_a_signal_ends_it_in_order(cluster: Cluster, client: httpx.AsyncClient) -> None:
    asked = [asyncio.create_task(embed(client, f"last-{number}")) for number in range(CALLERS)]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    below = psutil.Process(cluster.process.pid).children(recursive=True)
    cluster.process.send_signal(signal.SIGINT)
    assert [(await each).status_code for each in asked] == [200] * CALLERS
    assert await asyncio.to_thread(cluster.process.wait, PATIENCE_S) == 0
    _, alive = await asyncio.to_thread(psutil.wait_procs, below, PATIENCE_S)
    assert alive == []
