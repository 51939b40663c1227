"""A real Prometheus scrapes the real service with deploy/'s files. The one test that waits, as both are processes.

Skipped where there is no `prometheus` and `promtool` (Debian: apt-get install prometheus).
"""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from service.settings import PREFIX
from tests.support.collector import collecting
from tests.support.paths import ROOT
from tests.support.serving import PNG, noise

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "visiontower.json"
PATIENCE_S = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")), reason="no prometheus and promtool here"
    ),
]


def free_port() -> int:
    """One that the system has just given out and taken back; Prometheus cannot tell which it chose itself."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@contextmanager
def process(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env) as running:
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                running.kill()


def until(what: str, is_true: Callable[[], bool], *, running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert running.poll() is None, f"{what}: the process ended\n{log.read_text()}"
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s\n{log.read_text()}"
        time.sleep(0.1)


def answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


@dataclass(frozen=True)
class Running:
    """Clients of the service and of the Prometheus that scrapes it."""

    service: httpx.Client
    prometheus: httpx.Client

    def traffic(self) -> None:
        for seed in range(3):
            self.service.post("/embed", content=noise(seed), headers=PNG).raise_for_status()
        self.service.post(
            "/similarity", files={"image": noise(0)}, data={"text": ["a cat", "a dog"]}
        ).raise_for_status()

    def query(self, expression: str) -> list[float]:
        """Its values now, but for NaN. An expression Prometheus cannot evaluate fails the test."""
        response = self.prometheus.get("/api/v1/query", params={"query": expression})
        answer = response.json()
        assert answer["status"] == "success", (expression, answer)
        values = [float(series["value"][1]) for series in answer["data"]["result"]]
        return [value for value in values if not math.isnan(value)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """deploy/'s configuration with the target replaced, and scraped more often so that rates come sooner."""
    folder = tmp_path_factory.mktemp("prometheus")
    service_port, prometheus_port = free_port(), free_port()
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{service_port}"]}]
    config["global"] |= {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in config["rule_files"]:
        shutil.copy(PROMETHEUS / name, folder / name)
    with ExitStack() as stack:
        log = folder / "service.log"
        collected = stack.enter_context(collecting())
        serve = (sys.executable, "-m", "service.cli", "serve", "--model", "demo:vit", "--port", str(service_port))
        traced = ("--traces-endpoint", collected.endpoint, "--traces-share", "1")
        service = stack.enter_context(process(*serve, *traced, log=log))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{service_port}", trust_env=False))
        until("the service is ready", lambda: answers(client, "/health/ready"), running=service, log=log)
        log = folder / "prometheus.log"
        scraper = stack.enter_context(
            process(
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{prometheus_port}",
                "--enable-feature=exemplar-storage",  # as in docker-compose.yml
                log=log,
            )
        )
        api = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{prometheus_port}", trust_env=False))
        until("Prometheus is ready", lambda: answers(api, "/-/ready"), running=scraper, log=log)
        both = Running(client, api)
        until("the target is up", lambda: both.query('up{job="visiontower"}') == [1], running=scraper, log=log)
        yield both


def promtool(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["promtool", *arguments], input=given, capture_output=True, check=False)


@pytest.mark.parametrize(("kind", "file"), [("config", "prometheus.yml"), ("rules", "alerts.yml")])
def test_promtool_finds_no_fault(kind: str, file: str) -> None:
    done = promtool("check", kind, str(PROMETHEUS / file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_live_metrics_follow_prometheus_conventions(running: Running) -> None:
    running.traffic()
    response = running.service.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    done = promtool("check", "metrics", given=response.content)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()


def test_a_bucket_names_the_trace_of_a_request_in_it(running: Running) -> None:
    asked = {"query": "visiontower_request_seconds_bucket", "start": "0", "end": "9999999999"}
    running.traffic()
    deadline = time.monotonic() + PATIENCE_S
    while not (series := running.prometheus.get("/api/v1/query_exemplars", params=asked).json()["data"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ids = {exemplar["labels"]["trace_id"] for each in series for exemplar in each["exemplars"]}
    assert all(re.fullmatch(r"[0-9a-f]{32}", found) for found in ids)


def test_the_scraped_counts_are_the_requests_made(running: Running) -> None:
    count = 'sum(visiontower_requests_total{route="/embed",status="200"})'
    made = [line for line in running.service.get("/metrics").text.splitlines() if 'route="/embed",status="200"' in line]
    before = sum(float(line.split()[-1]) for line in made if line.startswith("visiontower_requests_total"))
    running.traffic()
    deadline = time.monotonic() + PATIENCE_S
    while running.query(count) != [before + 3]:
        assert time.monotonic() < deadline, running.query(count)
        time.sleep(0.1)


def test_every_panel_of_the_dashboard_shows_data(running: Running) -> None:
    """But for what is refused: nothing was."""
    board = json.loads(DASHBOARD.read_text())
    panels = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]
    waiting = {expression: title for title, expression in panels if title != "Rejected by reason"}
    assert len(waiting) > 10
    deadline = time.monotonic() + PATIENCE_S
    while waiting:
        running.traffic()
        waiting = {expr: title for expr, title in waiting.items() if not running.query(_filled(expr))}
        assert not waiting or time.monotonic() < deadline, waiting
        time.sleep(0.1)


def test_the_refusals_panel_can_be_evaluated_and_no_alert_fires(running: Running) -> None:
    board = json.loads(DASHBOARD.read_text())
    (refused,) = [panel["targets"] for panel in board["panels"] if panel["title"] == "Rejected by reason"]
    assert running.query(_filled(refused[0]["expr"])) == []
    (group,) = running.prometheus.get("/api/v1/rules").json()["data"]["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}, "unknown: not evaluated yet"
    assert [rule["name"] for rule in group["rules"] if running.query(rule["query"])] == []
    assert len(group["rules"]) == len(yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"])


ERRORS = "visiontower_requests_total{instance='a',status='%s'}"


@pytest.mark.parametrize(
    ("alert", "series", "fires"),
    [
        ("VisiontowerDown", {"up{job='visiontower',instance='a'}": "0x20"}, True),
        ("VisiontowerDown", {"up{job='visiontower',instance='a'}": "1x20"}, False),
        ("VisiontowerModelFailing", {"visiontower_model_ready{model='m'}": "1x10 0x10"}, True),
        ("VisiontowerQueueStalled", {"visiontower_queue_oldest_seconds{model='m'}": "0+5x20"}, True),
        ("VisiontowerQueueStalled", {"visiontower_queue_oldest_seconds{model='m'}": "1x20"}, False),
        ("VisiontowerOverloaded", {"visiontower_rejected_total{reason='overloaded'}": "0+1x20"}, True),
        ("VisiontowerOverloaded", {"visiontower_rejected_total{reason='body-too-large'}": "0+1x20"}, False),
        ("VisiontowerErrors", {ERRORS % 500: "0+1x20", ERRORS % 200: "0+9x20"}, True),
        ("VisiontowerErrors", {ERRORS % 503: "0+1x20", ERRORS % 200: "0+9x20"}, False),
        ("VisiontowerErrors", {ERRORS % 500: "1x20", ERRORS % 200: "9x20"}, False),
        (
            "VisiontowerSlow",
            {
                "visiontower_request_seconds_bucket{route='/embed',le='5.0'}": "0x20",
                "visiontower_request_seconds_bucket{route='/embed',le='10.0'}": "0+9x20",
                "visiontower_request_seconds_bucket{route='/embed',le='+Inf'}": "0+9x20",
            },
            True,
        ),
    ],
)
def test_alerts_fire_when_they_should_and_only_then(
    alert: str, series: dict[str, str], fires: bool, tmp_path: Path
) -> None:
    """`ALERTS` after 18 of 20 one-minute samples."""
    shutil.copy(PROMETHEUS / "alerts.yml", tmp_path)
    expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": "18m", "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}
        ],
    }
    test = tmp_path / "test.yml"
    test.write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "tests": [case]}))
    done = promtool("test", "rules", str(test))
    assert done.returncode == 0, done.stdout + done.stderr


def _filled(expression: str) -> str:
    """As Grafana fills it in, all instances and models chosen."""
    filled = expression.replace("$instance", ".*").replace("$model", ".*").replace("$__rate_interval", "1m")
    assert "$" not in filled
    return filled
