"""A real Prometheus scrapes the real service with deploy/'s files. It waits, as both are processes."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from tests.support.collector import collecting
from tests.support.keys import bearer, file_of, secret_of
from tests.support.paths import ROOT
from tests.support.process import served
from tests.support.prometheus import PROMETHEUS, RULES, Prometheus, needs_prometheus, promtool, rules, scraping, until
from tests.support.serving import PNG, noise

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "visiontower.json"

pytestmark = [pytest.mark.slow, needs_prometheus]


@dataclass(frozen=True)
class Running:
    """A client of the service, and the Prometheus that scrapes it."""

    service: httpx.Client
    prometheus: Prometheus
    seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def traffic(self) -> None:
        """One picture that comes again, which the cache keeps, and new ones."""
        for seed in (0, next(self.seeds), next(self.seeds)):
            self.service.post("/embed", content=noise(seed), headers=PNG).raise_for_status()
        self.service.post(
            "/similarity", files={"image": noise(0)}, data={"text": ["a cat", "a dog"]}
        ).raise_for_status()

    def refused_traffic(self) -> None:
        """With a key that may not use the encoder, and with none that is known."""
        for name in ("other", "unknown"):
            self.service.post("/embed", content=noise(0), headers={**PNG, **bearer(name)})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """deploy/'s configuration with the target replaced, and scraped more often so that rates come sooner."""
    folder = tmp_path_factory.mktemp("prometheus")
    keys = file_of(folder / "keys.toml", app={}, other={"models": ["demo:resnet"]})
    with (
        collecting() as collected,
        served(
            *("--model", "demo:vit", "--cache", "16MiB", "--keys-file", str(keys)),
            *("--traces-endpoint", collected.endpoint, "--traces-share", "1"),
        ) as address,
        httpx.Client(base_url=address, headers=bearer("app"), trust_env=False) as client,
        scraping(folder, [address.removeprefix("http://")], key=secret_of("app")) as prometheus,
    ):
        until("the target is up", lambda: prometheus.query('up{job="visiontower"}') == [1])
        yield Running(client, prometheus)


@pytest.mark.parametrize(("kind", "file"), [("config", "prometheus.yml"), *(("rules", file) for file in RULES)])
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
    running.traffic()
    found = running.prometheus.exemplars
    until("an exemplar is scraped", lambda: found("visiontower_request_seconds_bucket"))
    ids = [labels["trace_id"] for labels in found("visiontower_request_seconds_bucket")]
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)


def test_the_scraped_counts_are_the_requests_made(running: Running) -> None:
    count = 'sum(visiontower_requests_total{route="/embed",status="200"})'
    made = [line for line in running.service.get("/metrics").text.splitlines() if 'route="/embed",status="200"' in line]
    before = sum(float(line.split()[-1]) for line in made if line.startswith("visiontower_requests_total"))
    running.traffic()
    until("the counts are scraped", lambda: running.prometheus.query(count) == [before + 3])


def test_on_a_service_that_is_well_no_alert_fires(running: Running) -> None:
    groups = running.prometheus.groups()
    loaded = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in loaded} <= {"ok", "unknown"}, "unknown: not evaluated yet"
    assert len(loaded) == sum(len(rules(file)) for file in RULES)
    alerts = [rule for rule in loaded if rule["type"] == "alerting"]
    assert [rule["name"] for rule in alerts if running.prometheus.query(rule["query"])] == []


def test_every_panel_of_the_dashboard_shows_data(running: Running) -> None:
    """As Grafana fills its queries in, all servers and encoders chosen."""
    board = json.loads(DASHBOARD.read_text())
    panels = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]
    waiting = {_filled(expression): title for title, expression in panels}
    assert len(waiting) > 40

    def lacking() -> set[str]:
        running.traffic()
        running.refused_traffic()
        for expression in [each for each in waiting if running.prometheus.query(each)]:
            del waiting[expression]
        return set(waiting.values())

    until("data in every panel", lambda: not lacking(), missing=lacking)


def _filled(expression: str) -> str:
    filled = expression.replace("$instance", ".*").replace("$model", ".*").replace("$__rate_interval", "1m")
    assert "$" not in filled
    return filled
