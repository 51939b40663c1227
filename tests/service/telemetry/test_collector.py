"""Spans on their way to a collector."""

import logging
import os
import subprocess
import sys

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from pydantic import ValidationError
from pydantic_settings import SettingsError

from service.settings import Settings
from service.telemetry.collector import Collector
from tests.service.telemetry.test_tracing import parent, post
from tests.support.collector import collecting
from tests.support.serving import serving

pytestmark = pytest.mark.anyio


async def test_the_last_spans_are_sent_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20letmein")
    with collecting() as collector:
        async with serving(traces_endpoint=collector.endpoint, traces_share=1.0) as client:
            assert (await post(client)).status_code == 200
    assert {span.name for span in collector.spans} >= {"POST /embed", "decode", "queue", "forward", "batch"}
    headers, _ = collector.requests[0]
    assert headers["authorization"] == "Bearer letmein"
    assert headers["content-type"] == "application/x-protobuf"
    (resource,) = collector.resources
    assert resource["service.name"] == "visiontower"
    assert resource["service.version"]


async def test_who_sends_them_is_the_operator_s_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "encoders")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with collecting() as collector:
        sender = Collector(collector.endpoint, share=1.0)
        sender.provider.get_tracer("test").start_span("one").end()
        sender.close(timeout_s=30)
    (resource,) = collector.resources
    assert resource["service.name"] == "encoders"
    assert resource["deployment.environment.name"] == "test"


async def test_the_caller_s_decision_goes_and_a_batch_follows_it() -> None:
    """A share of none is of those who have decided nothing."""
    with collecting() as collector:
        async with serving(traces_endpoint=collector.endpoint, traces_share=0.0) as client:
            assert (await post(client)).status_code == 200
            assert (await post(client, **parent(sampled=False))).status_code == 200
            assert (await post(client, **parent(sampled=True))).status_code == 200
    names = [span.name for span in collector.spans]
    assert names.count("POST /embed") == 1
    assert names.count("batch") == 1


async def test_a_collector_that_does_not_answer_does_not_hold_the_end_up(caplog: pytest.LogCaptureFixture) -> None:
    with collecting(answers=False) as collector, caplog.at_level(logging.WARNING):
        sender = Collector(collector.endpoint, share=1.0)
        sender.provider.get_tracer("test").start_span("one").end()
        sender.close(timeout_s=0.05)
    assert "could not be sent" in caplog.text


def test_a_url_without_a_path_gets_the_usual_one() -> None:
    assert Settings(traces_endpoint="http://collector:4318").traces_endpoint == "http://collector:4318/v1/traces"
    assert Settings(traces_endpoint="https://c/otlp/v1/traces").traces_endpoint == "https://c/otlp/v1/traces"


@pytest.mark.parametrize(
    "url", ["collector:4318", "grpc://u:sekret@collector:4317", "http://", "http://[c", "http://c:99999"]
)
def test_what_is_no_url_says_how_one_looks(url: str) -> None:
    with pytest.raises(ValidationError, match="use http://HOST:4318/v1/traces"):
        Settings(traces_endpoint=url)


@pytest.mark.parametrize("url", ["http://user:sekret@collector:4318", "http://collector:4318/v1/traces?key=sekret"])
def test_a_url_with_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="OTEL_EXPORTER_OTLP_HEADERS"):
        Settings(traces_endpoint=url)


def test_a_header_that_cannot_be_read_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer sekret")
    Collector("http://127.0.0.1:1/v1/traces", share=0.0).close(timeout_s=30)
    assert "Header format invalid" in caplog.text
    assert "sekret" not in caplog.text


def test_a_wrong_variable_of_opentelemetry_s_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(SettingsError, match=r"OTEL_\*.*max_queue_size"):
        Collector("http://127.0.0.1:1/v1/traces", share=0.0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ValidationError, match=r"pip install 'visiontower\[otel\]'"):
        Settings(traces_endpoint="http://collector:4318")


def test_a_collector_that_is_away_all_night_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sender = Collector("http://127.0.0.1:1/v1/traces", share=1.0)
        for reason in ("ConnectionError", "ReadTimeout"):
            logging.getLogger(OTLPSpanExporter.__module__).warning("an error: %s", reason)
        sender.close(timeout_s=30)
    assert [record.getMessage() for record in caplog.records] == ["an error: ConnectionError"]


def test_a_propagator_that_is_none_is_told_in_one_line() -> None:
    environment = {**os.environ, "OTEL_PROPAGATORS": "nonsense"}
    code = "from service.telemetry.tracing import propagator; propagator()"
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert told.stderr.splitlines()[-1].startswith("pydantic_settings.exceptions.SettingsError: OTEL_PROPAGATORS")
