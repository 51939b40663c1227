"""Traces: what is a span, what hangs below what, and what links to what."""

import asyncio
import json
import logging
from collections import Counter
from typing import Any

import httpx
import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parsed

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EncoderFailed
from service.engine.engine import Engine
from service.engine.values import EmbedRequest
from service.settings import Settings
from service.telemetry import logs
from service.telemetry.tracing import Tracing
from tests.support.serving import Gate, app_of, backend_of, client_of, image_bytes, noise, serving
from tests.support.tracing import Spans, attributes, linked, span_id, trace_id
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
CALLER = "0af7651916cd43dd8448eb211c80319c"
OPEN_METRICS = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}


def parent(*, sampled: bool) -> dict[str, str]:
    return {"traceparent": f"00-{CALLER}-b7ad6b7169203331-{'01' if sampled else '00'}", "tracestate": "vendor=1"}


async def post(client: httpx.AsyncClient, *images: bytes, **headers: str) -> httpx.Response:
    return await client.post("/embed", files=[("image", image) for image in images or (noise(0),)], headers=headers)


def lies_within(span: ReadableSpan, outer: ReadableSpan) -> bool:
    times = (outer.start_time or 0, span.start_time or 0, span.end_time or 0, outer.end_time or 0)
    return times == tuple(sorted(times))


async def test_a_request_of_two_images_is_a_tree_of_its_stages() -> None:
    spans = Spans()
    async with serving(tracer_provider=spans.provider) as client:
        assert (await post(client, noise(1), noise(2))).status_code == 200
        await until(lambda: len(spans.named("forward")) == 2)
    (request,) = spans.named("POST /embed")
    assert request.kind is SpanKind.SERVER
    assert request.status.status_code is StatusCode.UNSET
    assert (
        attributes(request).items()
        >= {
            "http.request.method": "POST",
            "http.route": "/embed",
            "http.response.status_code": 200,
            "url.path": "/embed",
            "visiontower.model": "fake:vit",
            "visiontower.images": 2,
            "visiontower.outcome": "ok",
        }.items()
    )
    stages = spans.below(request)
    once = {"body": 1, "read": 1, "serialize": 1}
    assert Counter(span.name for span in stages) >= Counter(
        {**once, "decode": 2, "preprocess": 2, "queue": 2, "forward": 2}
    )
    for name in ("decode", "preprocess", "queue", "forward"):
        assert {attributes(span)["visiontower.image"] for span in spans.named(name)} == {0, 1}
    assert [span.name for span in stages if not lies_within(span, request)] == []
    assert {trace_id(span) for span in stages} == {trace_id(request)}


async def test_a_batch_links_to_its_requests_and_their_forwards_to_it() -> None:
    gate, spans = Gate(), Spans()
    app = app_of(FakeEncoder(before=gate), tracer_provider=spans.provider, lanes=1)
    async with client_of(app) as client:
        gate.close()
        first = asyncio.create_task(post(client))
        await gate.someone_inside()
        others = [asyncio.create_task(post(client, noise(seed))) for seed in (1, 2)]
        await until(lambda: app.state.engine.threads.waiting("fake:vit")[0] == 2)
        gate.is_open.set()
        await asyncio.gather(first, *others)
        await spans.come("forward", 3)
    (shared,) = [span for span in spans.named("batch") if len(span.links) == 2]
    assert shared.parent is None
    about = attributes(shared)
    assert about["visiontower.items"] == 2
    assert about["visiontower.model"] == "fake:vit"
    assert about["visiontower.predicted_bytes"]
    together = [span for span in spans.named("forward") if linked(span) == {span_id(shared)}]
    assert {span.parent.span_id for span in together if span.parent} == linked(shared)
    assert linked(shared) < {span_id(span) for span in spans.named("POST /embed")}
    assert len({trace_id(span) for span in together}) == 2


async def test_a_bad_image_fails_in_its_own_span() -> None:
    spans = Spans()
    async with serving(tracer_provider=spans.provider) as client:
        assert (await post(client, noise(1), b"\x89PNG\r\n\x1a\n no picture")).status_code == 207
    failed = [span for span in spans.ended if span.status.status_code is StatusCode.ERROR]
    assert [(span.name, attributes(span)["visiontower.image"]) for span in failed] == [("decode", 1)]
    request = spans.one("POST /embed")
    assert attributes(request)["visiontower.failed"] == 1
    assert attributes(request)["http.response.status_code"] == 207


async def test_a_forward_that_fails_is_marked_and_so_is_its_request() -> None:
    def fail(batch: int) -> None:
        raise EncoderFailed("no", model="fake:vit")

    encoder, spans = FakeEncoder(), Spans()
    async with serving(encoder, tracer_provider=spans.provider) as client:
        encoder.before = fail
        assert (await post(client)).status_code == 500
        (forward,) = await spans.come("forward")
    assert attributes(forward)["error.type"] == "EncoderFailed"
    request = spans.one("POST /embed")
    assert request.status.status_code is StatusCode.ERROR
    assert attributes(request)["error.type"] == attributes(request)["visiontower.outcome"] == "encoder-failed"


async def test_a_refused_request_says_why() -> None:
    gate, spans = Gate(), Spans()
    app = app_of(FakeEncoder(before=gate), tracer_provider=spans.provider, queue_images=1, max_images=1)
    async with client_of(app) as client:
        gate.close()
        first = asyncio.create_task(post(client))
        await gate.someone_inside()
        assert (await post(client)).status_code == 503
        gate.is_open.set()
        await first
    refused = next(span for span in spans.named("POST /embed") if span.status.status_code is StatusCode.ERROR)
    assert attributes(refused)["error.type"] == "overloaded"
    assert attributes(refused)["http.response.status_code"] == 503


async def test_a_request_that_waited_in_vain_shows_its_wait() -> None:
    gate, spans = Gate(), Spans()
    app = app_of(FakeEncoder(before=gate), tracer_provider=spans.provider, lanes=1)
    async with client_of(app) as client:
        gate.close()
        first = asyncio.create_task(post(client))
        await gate.someone_inside()
        second = asyncio.create_task(post(client))
        await until(lambda: app.state.engine.threads.waiting("fake:vit")[0] == 1)
        second.cancel()  # its client leaves
        (wait,) = await spans.come("queue")
        gate.is_open.set()
        await first
    assert attributes(wait)["error.type"] == "unserved"


async def test_an_error_that_nobody_foresaw_is_a_500_in_the_span() -> None:
    spans = Spans()
    app = app_of(tracer_provider=spans.provider)

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError

    async with client_of(app) as client:
        assert (await client.get("/broken")).status_code == 500
    request = spans.one("GET /broken")
    assert attributes(request)["error.type"] == "ZeroDivisionError"
    assert attributes(request)["http.response.status_code"] == 500


async def test_the_caller_s_trace_goes_on() -> None:
    spans = Spans()
    async with serving(tracer_provider=spans.provider) as client:
        await post(client, **parent(sampled=True))
    request = spans.one("POST /embed")
    assert trace_id(request) == CALLER
    assert request.parent is not None
    assert request.parent.is_remote


@pytest.mark.parametrize("headers", [parent(sampled=False), {}])
async def test_what_is_not_sampled_leaves_nothing(headers: dict[str, str]) -> None:
    spans = Spans(ParentBased(ALWAYS_OFF))
    async with serving(tracer_provider=spans.provider) as client:
        assert (await post(client, **headers)).status_code == 200
        exposition = (await client.get("/metrics", headers=OPEN_METRICS)).text
    assert spans.ended == ()
    assert CALLER not in exposition


async def test_a_malformed_parent_begins_a_trace() -> None:
    spans = Spans()
    async with serving(tracer_provider=spans.provider) as client:
        assert (await post(client, traceparent="00-zz\x7f-1-01")).status_code == 200
    assert spans.one("POST /embed").parent is None


async def test_probes_are_not_traced() -> None:
    spans = Spans()
    async with serving(tracer_provider=spans.provider) as client:
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert (await client.get(path)).status_code == 200
        assert (await client.request("BREW", "/models")).status_code == 405
        assert (await client.get("/nowhere")).status_code == 404
    assert [span.name for span in spans.ended] == ["HTTP /models", "GET"]
    assert attributes(spans.ended[0])["http.request.method"] == "_OTHER"


async def test_texts_are_traced_as_one() -> None:
    spans = Spans()
    async with serving(FakeEncoder(fake_spec()), tracer_provider=spans.provider) as client:
        answer = await client.post("/embed", json={"texts": ["a dog", "a cat"]})
        assert answer.status_code == 200, answer.text
        await until(lambda: len(spans.named("forward")) == len(spans.named("batch")) > 0)
    request = spans.one("POST /embed")
    names = {span.name for span in spans.below(request)}
    assert names >= {"tokenize", "queue", "forward"}


async def test_the_log_line_and_the_exemplar_name_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    spans = Spans()
    async with serving(tracer_provider=spans.provider) as client:
        with caplog.at_level(logging.INFO, logs.REQUESTS):
            await post(client)
        as_open_metrics = await client.get("/metrics", headers=OPEN_METRICS)
        as_text = await client.get("/metrics")
    found = trace_id(spans.one("POST /embed"))
    assert [vars(record)["trace_id"] for record in caplog.records if record.name == logs.REQUESTS] == [found]
    assert json.loads(logs.JsonFormatter().format(caplog.records[-1]))["trace_id"] == found
    assert as_open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert as_open_metrics.text.endswith("# EOF\n")
    buckets = [
        sample
        for family in parsed(as_open_metrics.text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.name == "visiontower_request_seconds_bucket" and sample.exemplar
    ]
    assert [(each.labels["route"], each.exemplar.labels) for each in buckets] == [("/embed", {"trace_id": found})]
    assert as_text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "trace_id" not in as_text.text


async def test_a_fetch_hands_the_trace_on_and_no_baggage() -> None:
    asked: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        picture = image_bytes()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(picture), picture))
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    spans = Spans()
    async with serving(tracer_provider=spans.provider, image_url_hosts=(host,)) as client, server:
        body = {"images": [f"http://{host}/cat.png?secret=1"]}
        headers = {**parent(sampled=True), "baggage": "user=7"}
        assert (await client.post("/embed", json=body, headers=headers)).status_code == 200
    fetch = spans.one("fetch")
    assert fetch.kind is SpanKind.CLIENT
    sent = asked[0].decode().lower()
    assert f"traceparent: 00-{CALLER}-{span_id(fetch):016x}-01" in sent
    assert "tracestate: vendor=1" in sent
    assert "baggage" not in sent
    assert not any("secret" in str(attributes(span)) for span in spans.ended)


async def test_the_engine_alone_is_traced_where_its_program_says_so() -> None:
    spans = Spans()
    tracing = Tracing(spans.provider)
    async with Engine(Settings(model=("fake:vit",)), backend=backend_of(FakeEncoder())) as engine:
        await engine.embed(EmbedRequest([noise(0)], output="pooled"))
        assert spans.ended == ()
        with spans.provider.get_tracer("theirs").start_as_current_span("night run"), tracing.request("embed"):
            await engine.embed(EmbedRequest([noise(0)], output="pooled"))
        await spans.come("forward")
    embed = spans.one("embed")
    assert spans.below(spans.one("night run")) == [embed]
    assert {span.name for span in spans.below(embed)} == {"decode", "preprocess", "queue", "forward"}


async def test_without_a_provider_nothing_stands_in_a_request_s_way() -> None:
    assert isinstance(otel.get_tracer_provider(), otel.ProxyTracerProvider)
    app = app_of()
    assert Tracing.of("", share=1.0) is None
    assert "Traced" not in {getattr(layer.cls, "__name__", "") for layer in app.user_middleware}
    async with client_of(app) as client:
        answer: Any = await post(client, **parent(sampled=True))
    assert answer.status_code == 200
