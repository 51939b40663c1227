"""What traces cost a request: processor time with traces off, of a request that is sampled, and of one that is not.

    python -m benchmarks.traces          # microseconds a request, of one image and of eight
    python -m benchmarks.traces --show   # the trace of a request whose batch it shared with another

Over ASGI in process, all threads together, with an encoder that does next to nothing: all else of a request is the same
in both. Rounds take turns, and each mode's cheapest is shown: other programs make a round dearer, never cheaper. Spans
are encoded for a collector, and not sent. A request that is not sampled meets the middleware alone, which is timed by
itself: between rounds it is not to be seen. Needs the extra `otel`.
"""

import argparse
import asyncio
import io
import math
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import httpx
import numpy as np
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from PIL import Image
from starlette.types import Message, Receive, Scope, Send

from encoders.adapters.fake import FakeBlueprint, FakeEncoder, FakeMemory
from service.engine.backend import Backend
from service.http.app import create_app
from service.http.middleware.traced import Traced
from service.settings import Settings
from service.telemetry.request_record import RequestRecord
from service.telemetry.tracing import Tracing

_MODES: dict[str, Sampler | None] = {"off": None, "sampled": ALWAYS_ON}
_HEADERS = ("host", "accept", "accept-encoding", "connection", "user-agent", "content-length", "content-type")
_IMAGES = (1, 8)
_ROUNDS, _A_ROUND, _CALLS = 250, 4, 100
_BAR = 48


class _Encoded(SpanExporter):
    """Encodes spans as for a collector, and keeps them if it is to."""

    def __init__(self, *, keeps: bool = False) -> None:
        self.spans: list[ReadableSpan] = []
        self._keeps = keeps

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As SpanExporter."""
        encode_spans(spans).SerializeToString()
        if self._keeps:
            self.spans += spans
        return SpanExportResult.SUCCESS


def _image(seed: int) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


async def _client(
    stack: AsyncExitStack, provider: TracerProvider | None, *, forward_s: float = 0.0
) -> httpx.AsyncClient:
    encoder = FakeEncoder(before=lambda batch: time.sleep(forward_s))
    backend = Backend(
        load=lambda model: encoder,
        blueprint=lambda model, dtype: FakeBlueprint(encoder.spec),
        memory=lambda: FakeMemory(2**40),
    )
    app = create_app(Settings(model=(encoder.spec.id,), lanes=1), backend=backend, tracer_provider=provider)
    await stack.enter_async_context(app.router.lifespan_context(app))
    transport = httpx.ASGITransport(app)
    return await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1"))


async def _post(client: httpx.AsyncClient, images: int, first: int = 0) -> None:
    files = [("image", _PICTURES[first + index]) for index in range(images)]
    (await client.post("/embed?output=pooled", files=files)).raise_for_status()


_PICTURES = [_image(seed) for seed in range(2 * max(_IMAGES))]


async def _costs() -> None:
    """Print a table."""
    print(f"not sampled: {await _not_sampled():.0f} µs\nimages  off µs  sampled +µs")
    async with AsyncExitStack() as stack:
        clients = {}
        for mode, sampler in _MODES.items():
            provider = None if sampler is None else TracerProvider(sampler, shutdown_on_exit=False)
            if provider is not None:
                provider.add_span_processor(BatchSpanProcessor(_Encoded()))
                stack.callback(provider.shutdown)
            clients[mode] = await _client(stack, provider)
        for images in _IMAGES:
            least = dict.fromkeys(_MODES, math.inf)
            for _ in range(_ROUNDS):
                for mode, client in clients.items():
                    started = time.process_time()
                    for _ in range(_A_ROUND):
                        await _post(client, images)
                    least[mode] = min(least[mode], (time.process_time() - started) / _A_ROUND * 1e6)
            off, sampled = least.values()
            print(f"{images:6}  {off:6.0f}  {sampled - off:11.0f}")


async def _not_sampled() -> float:
    """Microseconds of the middleware around an app that does nothing."""
    tracing = Tracing(TracerProvider(ParentBased(ALWAYS_OFF), shutdown_on_exit=False))

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        """As ASGI."""

    app = Traced(nothing, tracing=tracing)
    headers = [(name.encode(), b"value") for name in _HEADERS]
    scope: Scope = {
        "type": "http", "method": "POST", "path": "/embed", "scheme": "http", "headers": headers,
        "server": ("127.0.0.1", 8000), "record": RequestRecord("id", "POST"),
    }  # fmt: skip
    least = math.inf
    for _ in range(_ROUNDS):
        started = time.process_time()
        for _ in range(_CALLS):
            await app(scope, receive, send)
        least = min(least, (time.process_time() - started) / _CALLS * 1e6)
    return least


async def _show() -> None:
    """Print a trace, with a bar for each span."""
    kept = _Encoded(keeps=True)
    provider = TracerProvider(ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(kept))
    async with AsyncExitStack() as stack:
        client = await _client(stack, provider, forward_s=0.005)
        await _post(client, 1)  # plans the shape
        async with asyncio.TaskGroup() as group:
            for first in range(3):
                group.create_task(_post(client, 2, first * 2))
    provider.shutdown()
    batch = max((span for span in kept.spans if span.name == "batch"), key=lambda span: len(span.links))
    of_request = {link.context.trace_id for link in batch.links}
    request = min(of_request, key=lambda trace: _begin(_of(kept.spans, trace)))
    spans = sorted(_of(kept.spans, request), key=lambda span: span.start_time or 0)
    begin, end = _begin(spans), max(span.end_time or 0 for span in spans)
    for span in [*spans, batch]:
        start, length = (span.start_time or 0) - begin, (span.end_time or 0) - (span.start_time or 0)
        left = min(_BAR - 1, _BAR * start // (end - begin))
        bar = " " * left + "#" * max(1, _BAR * length // (end - begin))
        image = (span.attributes or {}).get("visiontower.image")
        name = span.name if image is None else f"{span.name} [{image}]"
        indent = "" if span.parent is None else "  "
        links = {"batch": f"  links to {len(span.links)} requests", "forward": "  links to the batch"}.get(
            span.name, ""
        )
        print(f"{indent + name:16}|{bar:{_BAR}}| {length / 1e6:7.2f} ms{links}")


def _of(spans: Sequence[ReadableSpan], trace: int) -> list[ReadableSpan]:
    return [span for span in spans if span.context is not None and span.context.trace_id == trace]


def _begin(spans: Sequence[ReadableSpan]) -> int:
    return min(span.start_time or 0 for span in spans)


def main() -> None:
    """Print the costs, or a trace."""
    parser = argparse.ArgumentParser("python -m benchmarks.traces", description=__doc__.partition("\n")[0])
    parser.add_argument("--show", action="store_true", help="the trace of a request")
    asyncio.run(_show() if parser.parse_args().show else _costs())


if __name__ == "__main__":
    main()
