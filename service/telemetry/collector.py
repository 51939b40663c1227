"""Spans to a collector, by OTLP over HTTP: OpenTelemetry's SDK and exporter, from the extra `otel`.

The SDK's own variables go on working: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS and
OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_BSP_MAX_QUEUE_SIZE and the like.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes
from pydantic_settings import SettingsError

_log = logging.getLogger(__name__)
_SELDOM_S = 600.0


class Collector:
    """Where spans are sent. Each process has its own."""

    def __init__(self, endpoint: str, *, share: float) -> None:
        """endpoint: a URL with its path. share: of the requests that bring no decision of their own, 0 to 1.

        Raises SettingsError if a variable of OpenTelemetry's is wrong.
        """
        self._endpoint = endpoint
        logging.getLogger("opentelemetry.util.re").addFilter(_without_header)
        ours = {
            "service.name": "visiontower",
            "service.version": version("visiontower"),
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
        # Of `create`'s attributes the variables could change none.
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        try:
            self.provider = TracerProvider(ParentBased(_Share(share)), resource, shutdown_on_exit=False)
            self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        except ValueError as error:
            raise SettingsError(f"a variable OTEL_* is wrong: {error}") from error
        for speaker in (OTLPSpanExporter.__module__, "opentelemetry.sdk._shared_internal"):
            logging.getLogger(speaker).addFilter(_SELDOM)

    def close(self, *, timeout_s: float) -> None:
        """Send what is left; a collector that does not answer in time loses it."""
        closing = threading.Thread(target=self.provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            _log.warning("the last spans could not be sent to %s in %g s", self._endpoint, timeout_s)


def _without_header(record: logging.LogRecord) -> bool:
    """A header of OTEL_EXPORTER_OTLP_HEADERS that cannot be read may be a secret all the same."""
    record.args = ("(not shown)",)
    return True


class _Seldom(logging.Filter):
    """Lets a message through once in ten minutes, whatever is filled in: a collector may be away all night."""

    def __init__(self) -> None:
        super().__init__()
        self._due: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """As logging.Filter."""
        is_due = time.monotonic() >= self._due.get(record.msg, -math.inf)
        if is_due:
            self._due[record.msg] = time.monotonic() + _SELDOM_S
        return is_due


_SELDOM = _Seldom()


class _Share(Sampler):
    """Of what has no parent: by the trace's id, and whatever is linked to a sampled span, as batches are."""

    def __init__(self, share: float) -> None:
        self._by_id = TraceIdRatioBased(share)
        self._all = TraceIdRatioBased(1.0)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """As Sampler."""
        is_linked = any(link.context.trace_flags.sampled for link in links or ())
        sampler = self._all if is_linked else self._by_id
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """As Sampler."""
        return f"{self._by_id.get_description()}, and what is linked to sampled spans"
