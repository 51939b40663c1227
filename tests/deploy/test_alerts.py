"""The rules of deploy/prometheus: promtool's tests of them are whole, and each alert fires on a service that is ill."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from encoders.adapters.fake import FakeEncoder, FakeMemory, fake_spec
from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed
from encoders.memory.device import Figures
from service.run.server import Server, make_server
from service.settings import Settings
from tests.support.keys import bearer, file_of, secret_of
from tests.support.paths import ROOT
from tests.support.process import served
from tests.support.prometheus import (
    PATIENCE_S,
    PROMETHEUS,
    RULES,
    Prometheus,
    free_port,
    needs_prometheus,
    promtool,
    rules,
    scraping,
    until,
)  # fmt: skip
from tests.support.serving import PNG, Gate, backend_of, image_bytes

ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED = {rule["record"] for rule in rules("rules.yml")}
TESTS = [path for path in sorted((PROMETHEUS / "tests").glob("*.yml"))]
CASES = [case for path in TESTS for case in yaml.safe_load(path.read_text())["tests"]]


def outcomes(name: str) -> list[bool]:
    """Whether something is expected, of each moment that the tests of this rule look at."""
    cases = [case for case in CASES if case["name"] == name]
    return [bool(moment["exp_samples"]) for case in cases for moment in case["promql_expr_test"]]


@pytest.mark.parametrize("alert", ALERTS)
def test_of_an_alert_it_is_tested_that_it_comes_and_goes(alert: str) -> None:
    assert outcomes(alert) == [False, True, False]


@pytest.mark.parametrize("series", sorted(RECORDED))
def test_a_recorded_series_is_tested_and_used(series: str) -> None:
    assert True in outcomes(series)
    dashboards = (path.read_text() for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
    used = [*(rule["expr"] for file in RULES for rule in rules(file)), *dashboards]
    assert any(series in text for text in used)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    section = re.split(rf"^## {alert}\n", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert (anchor, len(section)) == (alert.lower(), 2)


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_promtool_s_tests_pass(path: Path) -> None:
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


class Shared(FakeMemory):
    """A card on which another process has `others` bytes."""

    others = 0

    def figures(self) -> Figures:
        figures = super().figures()
        return figures._replace(free=figures.free - self.others)


class Clock:
    """Can be put forward."""

    def __init__(self) -> None:
        self.forward_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.forward_s


class Ill:
    """Lets forwards fail while it is set."""

    is_set = False

    def __call__(self, batch: int) -> None:
        if self.is_set:
            raise EncoderFailed("It is ill.", model="fake")


@asynccontextmanager
async def listening(*encoders: Encoder, memory: FakeMemory | None = None, **about: Any) -> AsyncIterator[Server]:
    """A server in this process. about: settings, and a clock."""
    models = tuple(encoder.spec.id for encoder in encoders)
    clock = about.pop("clock", time.monotonic)
    settings = Settings(model=models, port=0, **about)
    server = make_server(settings, backend=backend_of(*encoders, memory=memory), clock=clock)
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:
            await asyncio.sleep(0)
    yield server
    server.should_exit = True
    await running


def address(server: Server) -> str:
    host, port = server.servers[0].sockets[0].getsockname()
    return f"{host}:{port}"


@dataclass
class Provoking:
    """Sends requests, and looks at what Prometheus makes of them."""

    prometheus: Prometheus
    http: httpx.AsyncClient
    fired: dict[str, dict[str, str]] = field(default_factory=dict)

    async def post(self, server: Server, model: str, *, key: str | None = None) -> int:
        url, headers = f"http://{address(server)}/embed", PNG if key is None else PNG | bearer(key)
        return (await self.http.post(url, params={"model": model}, content=image_bytes(), headers=headers)).status_code

    async def fires(self, alert: str, *, by: Callable[[], Awaitable[object]] | None = None) -> None:
        """Do it until the alert has fired; if there is nothing to do, wait."""
        await self._until(alert, lambda: alert in self.fired, by)

    async def shows(self, expression: str) -> None:
        """Wait until Prometheus has a value of this."""
        await self._until(expression, lambda: bool(self.prometheus.query(expression)))

    async def _until(
        self, what: str, is_true: Callable[[], bool], by: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_true():
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s, but {self.fired.keys()}"
            if by is not None:
                await by()
            await asyncio.sleep(0.1)
            self.fired = self.prometheus.firing() | self.fired


async def provoke_errors(on: Provoking, server: Server, ill: Ill) -> None:
    ill.is_set = True
    fails = partial(on.post, server, "fake:ill")
    await asyncio.gather(on.fires("VisiontowerErrors", by=fails), on.fires("VisiontowerModelFailing", by=fails))


async def provoke_coming_and_going(on: Provoking, server: Server, ill: Ill) -> None:
    series = f'visiontower_model_ready{{instance="{address(server)}",model="fake:unsteady"}}'
    for turn in range(7):
        ill.is_set = turn % 2 == 1
        await on.post(server, "fake:unsteady")
        await on.shows(f"{series} == {int(not ill.is_set)}")
    await on.fires("VisiontowerModelUnsteady")


async def provoke_trouble_with_memory(on: Provoking, server: Server, large: FakeEncoder, card: Shared) -> None:
    large.true_cost = 1.5
    await on.post(server, "fake:large")
    await on.fires("VisiontowerMemoryUnderestimated")
    large.true_cost = 1e9
    await on.fires("VisiontowerOutOfMemory", by=partial(on.post, server, "fake:large"))
    card.others = card.total // 2
    await on.fires("VisiontowerMemoryTaken")


async def provoke_a_queue(on: Provoking, server: Server, gate: Gate, clock: Clock) -> None:
    assert await on.post(server, "fake:vit") == 200
    await on.shows(f'visiontower_request_seconds_count{{instance="{address(server)}",route="/embed"}}')
    gate.close()
    running = [asyncio.create_task(on.post(server, "fake:vit"))]
    await gate.someone_inside()
    running += [asyncio.create_task(on.post(server, "fake:vit"))]
    await on.shows(f'visiontower_queue_images{{instance="{address(server)}"}} == 1')
    clock.forward_s += 15
    await on.fires("VisiontowerQueueStalled")
    gate.is_open.set()
    assert await asyncio.gather(*running) == [200, 200]
    await on.fires("VisiontowerSlow")
    gate.close()
    running = [asyncio.create_task(on.post(server, "fake:vit")) for _ in range(server.engine.settings.queue_images)]
    await gate.someone_inside()
    await on.fires("VisiontowerOverloaded", by=partial(on.post, server, "fake:vit"))
    gate.is_open.set()
    await asyncio.gather(*running)


async def provoke_by_keys(on: Provoking, server: Server) -> None:
    await on.fires("VisiontowerUnauthorized", by=partial(on.post, server, "fake:vit"))
    await on.fires("VisiontowerKeyRefused", by=partial(on.post, server, "fake:vit", key="search"))


async def provoke_by_a_cache(on: Provoking, server: Server) -> None:
    async def miss() -> None:
        server.engine.metrics.cached(hits=0, misses=1000)

    await on.fires("VisiontowerCacheUseless", by=miss)


def restart(prometheus: Prometheus, port: int) -> None:
    """Four starts of one server; then it is gone."""
    for start in range(4):
        with served("--model", "fake:vit", "--port", str(port)):
            changes = f'changes(process_start_time_seconds{{instance="127.0.0.1:{port}"}}[2m]) == {start}'
            until(f"start {start + 1} is seen", partial(prometheus.query, changes))


async def provoke_an_end(on: Provoking, port: int) -> None:
    await asyncio.to_thread(restart, on.prometheus, port)
    await asyncio.gather(on.fires("VisiontowerRestarting"), on.fires("VisiontowerDown"))


@pytest.mark.slow
@needs_prometheus
@pytest.mark.anyio
async def test_every_alert_fires_when_it_is_provoked(tmp_path: Path) -> None:
    """As shipped, but for windows, which are shorter, and for waiting, which is not done."""
    ill, unsteady, gate, clock, port = Ill(), Ill(), Gate(), Clock(), free_port()
    card = Shared(2**30, device="cuda:0")
    large = FakeEncoder(fake_spec("fake:large"), memory=card)
    others = (
        FakeEncoder(fake_spec("fake:ill"), before=ill),
        FakeEncoder(fake_spec("fake:unsteady"), before=unsteady),
    )
    async with AsyncExitStack() as stack:
        sick = await stack.enter_async_context(listening(*others, large, memory=card))
        full = await stack.enter_async_context(
            listening(FakeEncoder(before=gate), clock=clock, queue_images=2, max_images=1)
        )
        keys = file_of(tmp_path / "keys.toml", prometheus={}, search={"requests_per_second": 0.001})
        guarded = await stack.enter_async_context(listening(FakeEncoder(), keys_file=keys))
        targets = [address(sick), address(full), address(guarded), f"127.0.0.1:{port}"]
        stack.callback(gate.is_open.set)  # else nothing ends after a failure
        prometheus = stack.enter_context(scraping(tmp_path, targets, key=secret_of("prometheus"), quickened=True))
        on = Provoking(prometheus, await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=60)))
        async with asyncio.TaskGroup() as tasks:
            for provocation in (
                provoke_errors(on, sick, ill),
                provoke_coming_and_going(on, sick, unsteady),
                provoke_trouble_with_memory(on, sick, large, card),
                provoke_a_queue(on, full, gate, clock),
                provoke_by_keys(on, guarded),
                provoke_by_a_cache(on, sick),
                provoke_an_end(on, port),
            ):
                tasks.create_task(provocation)
    assert on.fired.keys() == ALERTS.keys()
    for annotations in on.fired.values():
        assert not re.search(r"<no value>|error|\{\{", annotations["summary"]), annotations
