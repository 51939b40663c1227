"""Prometheus as a process of its own, with the configuration of deploy/. `make prometheus` brings one."""

import math
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.paths import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = ("rules.yml", "alerts.yml")
PATIENCE_S = 60
_QUICKER = 30
"""So many times shorter than in deploy/ are the windows of quickened rules; and nothing is waited `for`."""
_SECONDS = {"s": 1, "m": 60, "h": 3600}

_PATH = os.pathsep.join([str(ROOT / "build" / "prometheus" / "usr" / "bin"), os.environ["PATH"]])
_SERVER, _PROMTOOL = (shutil.which(name, path=_PATH) or "" for name in ("prometheus", "promtool"))

needs_prometheus = pytest.mark.skipif(not (_SERVER and _PROMTOOL), reason="no prometheus and promtool: make prometheus")


def rules(file: str) -> list[dict[str, Any]]:
    """All rules of a file of deploy/prometheus."""
    groups = yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([_PROMTOOL, *arguments], input=given, capture_output=True, check=False)


@dataclass(frozen=True)
class Prometheus:
    """Its HTTP API."""

    api: httpx.Client

    def query(self, expression: str) -> list[float]:
        """Its values now, but for NaN. An expression that Prometheus cannot evaluate fails the test."""
        answer = self._get("query", query=expression)
        values = [float(series["value"][1]) for series in answer["result"]]
        return [value for value in values if not math.isnan(value)]

    def groups(self) -> list[dict[str, Any]]:
        """The rules that it has loaded, by group, with their health."""
        found: list[dict[str, Any]] = self._get("rules")["groups"]
        return found

    def firing(self) -> dict[str, dict[str, str]]:
        """The annotations of the alerts that fire, by name."""
        alerts = self._get("alerts")["alerts"]
        return {each["labels"]["alertname"]: each["annotations"] for each in alerts if each["state"] == "firing"}

    def exemplars(self, series: str) -> list[dict[str, str]]:
        """The labels of all exemplars of a series."""
        found = self._get("query_exemplars", query=series, start="0", end="9999999999")
        return [exemplar["labels"] for each in found for exemplar in each["exemplars"]]

    def _get(self, what: str, **parameters: str) -> Any:
        answer = self.api.get(f"/api/v1/{what}", params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]


@contextmanager
def scraping(
    folder: Path, targets: Sequence[str], *, key: str | None = None, quickened: bool = False
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes these addresses twice a second. key: it presents this access key.

    quickened: so that alerts come in seconds.
    """
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
    if key is not None:
        config["scrape_configs"][0]["authorization"] = {"credentials": key}
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in config["rule_files"]:
        text = (PROMETHEUS / name).read_text()
        (folder / name).write_text(_quickened(text) if quickened else text)
    port = free_port()
    command = (
        _SERVER,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",  # as in docker-compose.yml
    )
    log = folder / "prometheus.log"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as api:
                until("Prometheus is ready", lambda: _is_ready(process, api, log))
                yield Prometheus(api)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def until(what: str, is_true: Callable[[], object], *, missing: Callable[[], object] = str) -> None:
    """Ask other processes ten times a second, until it holds. missing: said if it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s {missing()}"
        time.sleep(0.1)


def _quickened(text: str) -> str:
    text = re.sub(r"^( *for: ).*$", r"\g<1>0s", text, flags=re.MULTILINE)
    return re.sub(r"\[(\d+)([smh])\]", lambda found: f"[{int(found[1]) * _SECONDS[found[2]] // _QUICKER}s]", text)


def _is_ready(process: subprocess.Popen[bytes], api: httpx.Client, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return api.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    """One that the system has just given out and taken back; Prometheus cannot tell which it chose itself."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
