"""Traces: a request and its stages as OpenTelemetry spans, and the batches that it had items in. docs/traces.md.

Of OpenTelemetry this imports the API alone. Where the spans go is for a provider to say: that of the program around the
service, or one that sends them to a collector (telemetry/collector.py).
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    ProxyTracerProvider,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
    format_trace_id,
    get_current_span,
    get_tracer_provider,
    set_span_in_context,
)
from pydantic_settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator

    from service.telemetry.collector import Collector

Attributes: TypeAlias = Mapping[str, str | int | float]

TRACE: ContextVar["Trace | None"] = ContextVar("TRACE", default=None)
"""Of the request that is worked on; None if it is not traced. Threads are handed it."""

_LAST_S = 3.0
"""The last spans get as long at the end of the process."""

UNTRACED: AbstractContextManager[None] = nullcontext()
"""In place of a stage, where nothing is traced."""


class Tracing:
    """Begins the spans of requests."""

    def __init__(self, provider: TracerProvider, *, collector: "Collector | None" = None) -> None:
        """collector: to be closed with it."""
        self._tracer = provider.get_tracer("visiontower", version("visiontower"))
        self._collector = collector

    @classmethod
    def of(cls, endpoint: str, *, share: float, provider: TracerProvider | None = None) -> "Tracing | None":
        """To this provider, or as the settings traces_endpoint and traces_share say, or to the global provider.

        None if there is nowhere to send spans.
        """
        if provider is None and endpoint:
            from service.telemetry.collector import Collector  # imports the SDK

            collector = Collector(endpoint, share=share)
            return cls(collector.provider, collector=collector)
        found = get_tracer_provider() if provider is None else provider
        return None if isinstance(found, ProxyTracerProvider) else cls(found)

    async def close(self) -> None:
        """Send the last spans, if it is for us to do so."""
        if self._collector is not None:
            await asyncio.to_thread(self._collector.close, timeout_s=_LAST_S)

    @contextmanager
    def request(
        self,
        name: str,
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
    ) -> Iterator["Trace | None"]:
        """Trace the block, if the provider's sampler is for it: gives None if not.

        Below the program's current span, if there is one, else below the caller's, if the headers name it
        (`traceparent`, or as OTEL_PROPAGATORS says).
        """
        parent = None if get_current_span().get_span_context().is_valid else _parent(headers)
        with self._tracer.start_as_current_span(
            name, parent, kind, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            trace = Trace(span, self._tracer) if span.is_recording() else None
            token = TRACE.set(trace)
            try:
                yield trace
            except BaseException as error:
                mark_failed(span, type(error).__qualname__)
                raise
            finally:
                TRACE.reset(token)


@dataclass(frozen=True, eq=False)
class Trace:
    """A request's span, for stages below it. On any thread."""

    span: Span
    _tracer: Tracer
    _attributes: Attributes = field(default_factory=dict)

    @property
    def id(self) -> str:
        """As in `traceparent`."""
        return format_trace_id(self.span.get_span_context().trace_id)

    def of_image(self, index: int) -> "Trace":
        """For the stages of one image of the request."""
        return replace(self, _attributes={"visiontower.image": index})

    @contextmanager
    def stage(self, name: str, *, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[None]:
        """The block as a span, which is current in it."""
        with self._tracer.start_as_current_span(
            name,
            set_span_in_context(self.span),
            kind,
            self._attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                mark_failed(span, type(error).__qualname__)
                raise

    def _past(self, name: str, begin_ns: int, end_ns: int, *, links: Iterable[Link] = (), error: str | None) -> None:
        """A stage that is over."""
        context = set_span_in_context(self.span)
        span = self._tracer.start_span(
            name, context, attributes=self._attributes, links=list(links), start_time=begin_ns
        )
        if error is not None:
            mark_failed(span, error)
        span.end(end_ns)


@dataclass(frozen=True)
class Waited:
    """What a traced request had in a batch: since when it waited, and the type of the error if it failed."""

    trace: Trace
    since: float
    error: str | None = None


def trace_batch(items: Iterable[Waited], *, started: float, ended: float, now: float, attributes: Attributes) -> None:
    """A batch has run: a span of its own that links to the requests in it. Below each request its wait and the forward.

    started, ended, now: seconds on the clock of `since`. Items of one trace are one: the first of them.
    """
    zero_ns = _zero_ns(now)
    begin_ns, end_ns = zero_ns + _ns(started), zero_ns + _ns(ended)
    by_trace: dict[Trace, Waited] = {}
    for item in items:
        by_trace.setdefault(item.trace, item)
    requests = {trace.span: trace for trace in by_trace}
    tracer = next(iter(by_trace))._tracer
    batch = tracer.start_span(
        "batch",
        Context(),
        attributes=attributes,
        links=[Link(span.get_span_context()) for span in requests],
        start_time=begin_ns,
    )
    batch.end(end_ns)
    context = batch.get_span_context()
    links = [Link(context)] if context.trace_flags.sampled else []
    for trace, item in by_trace.items():
        trace._past("queue", zero_ns + _ns(item.since), begin_ns, error=None)
        trace._past("forward", begin_ns, end_ns, links=links, error=item.error)


def trace_wait(item: Waited, *, now: float) -> None:
    """An item has left the queue without a forward."""
    zero_ns = _zero_ns(now)
    item.trace._past("queue", zero_ns + _ns(item.since), zero_ns + _ns(now), error=item.error)


def propagator() -> "TextMapPropagator":
    """Reads and writes the headers that OTEL_PROPAGATORS names. Raises SettingsError if there is no such one."""
    try:
        from opentelemetry.propagate import get_global_textmap  # reads the variable
    except ValueError as error:
        raise SettingsError(f"OTEL_PROPAGATORS is wrong: {error}") from error
    return get_global_textmap()


def mark_failed(span: Span, error_type: str) -> None:
    """The span's work failed. error_type: a word from a closed set."""
    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", error_type)


def _parent(headers: Iterable[tuple[bytes, bytes]]) -> Context:
    """The caller's span, of the headers that the propagator reads; else none."""
    fields = {name.lower().encode() for name in propagator().fields}
    carrier: dict[str, list[str]] = {}
    for name, value in headers:
        if name in fields:
            carrier.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return propagator().extract(carrier, Context()) if carrier else Context()


def _zero_ns(now: float) -> int:
    """The wall's time at 0 of a clock that says `now`. Looked up each time: the wall's clock may be set."""
    return time.time_ns() - _ns(now)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
