"""The service's counts, under the names of the contract. Knows Prometheus; every label is from a closed set."""

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics

from encoders.contract.values import ImageSize
from service.access.keys import LIMITS, Key
from service.telemetry.request_record import RequestRecord
from service.telemetry.tracing import Trace


@dataclass(frozen=True)
class Form:
    """A format of Prometheus'."""

    content_type: str
    write: Callable[[CollectorRegistry], bytes]

    @classmethod
    def of(cls, accept: str) -> "Form":
        """The one that the header Accept asks for: OpenMetrics if it is named, as by Prometheus, else text."""
        return OPEN_METRICS if "application/openmetrics-text" in accept else TEXT


TEXT = Form("text/plain; version=0.0.4; charset=utf-8", generate_latest)
OPEN_METRICS = Form("application/openmetrics-text; version=1.0.0; charset=utf-8", openmetrics.generate_latest)
"""Has exemplars: a request's trace beside the bucket that counts it."""

_SIZES_A_MODEL = 32
"""Resolutions are the callers' to choose, label values are not: later ones are counted as `other`."""
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

_WATCHED = (
    HTTPStatus.OK,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

CLOSED = ("silent", "idle", "unread-answer", "head-too-large", "request-too-slow", "malformed-request")
"""Reasons for which the server closes a connection."""
DECISIONS = ("whole", "split", "refused")
CHANGES = ("loaded", "failed", "evicted")
STATES = ("ready", "failing", "hangs", "loading", "not loaded", "failed")
"""Of a served model."""


@dataclass(frozen=True)
class ModelNow:
    """A model at this moment.

    queue_images: images that wait; oldest_s: seconds that its oldest item has waited. state: one of STATES. facts: what
    its numbers depend on: revision, dtype, device, runtime.
    """

    queue_images: int
    oldest_s: float
    state: str = "ready"
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Now:
    """Values that are read when the metrics are asked for, not counted as requests pass.

    memory: bytes by kind: weights, allocated, reserved, budget, free, total. held: bytes of the host's memory that
    requests hold, by stage, and their limit. cached: bytes of the result cache, by where they are.
    """

    models: Mapping[str, ModelNow]
    device: str
    memory: Mapping[str, int]
    held: Mapping[str, int]
    cached: Mapping[str, int] = field(default_factory=dict)


@dataclass
class ImageStages:
    """Seconds that one image spent in each stage; 0 where it has not been. trace: of the image, if it is traced."""

    fetch: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0
    queue: float = 0.0
    forward: float = 0.0
    trace: Trace | None = None

    @property
    def seconds(self) -> tuple[float, ...]:
        """In the order of the stages."""
        return self.fetch, self.decode, self.preprocess, self.queue, self.forward


class Metrics:
    """One registry and what is in it; one per app, so that two apps in a process do not share counts."""

    def __init__(self, models: Sequence[str], *, refusals: Sequence[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, that nobody asked for
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self._models = tuple(models)
        self._sizes: dict[str, set[ImageSize]] = {model: set() for model in models}
        requests = Counter(
            "visiontower_requests_total", "Requests answered.", ["route", "status", "protocol"], registry=registry
        )
        request_seconds = Histogram(
            "visiontower_request_seconds",
            "Seconds from the request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        stage_seconds = Histogram(
            "visiontower_stage_seconds",
            "Seconds in a stage: an image's (fetch, decode, preprocess, queue), a batch's (forward), a request's "
            "(serialize).",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_images = Histogram(
            "visiontower_batch_images", "Images in a forward.", ["model"], buckets=_ITEMS, registry=registry
        )
        self._ceilings = Counter(
            "visiontower_batch_ceiling_images_total",
            "Images that the forwards could have had at the most, by memory, time and --max-batch.",
            ["model"],
            registry=registry,
        )
        padding = Gauge(
            "visiontower_batch_padding_ratio",
            "Share of a batch that is padding; 0, as only images of equal size share a batch.",
            ["model"],
            registry=registry,
        )
        self._images = Counter(
            "visiontower_images_total", "Images encoded.", ["model", "resolution"], registry=registry
        )
        self._tokens = Counter("visiontower_tokens_total", "Tokens answered.", ["model"], registry=registry)
        self._rejected = Counter(
            "visiontower_rejected_total", "Requests refused before work was done.", ["reason"], registry=registry
        )
        self._ratio = Gauge(
            "visiontower_vram_prediction_ratio",
            "Measured peak of the last forward that was measured, over what was predicted.",
            ["model"],
            registry=registry,
        )
        admission = Counter(
            "visiontower_admission_total",
            "Batches that took all that waited (whole) or were cut to the memory budget (split); requests of images "
            "that do not fit it alone (refused).",
            ["decision"],
            registry=registry,
        )
        self._connections = Gauge("visiontower_connections", "Connections that are open.", registry=registry)
        self._closed = Counter(
            "visiontower_connections_closed_total",
            "Connections that the server closed by its limits.",
            ["reason"],
            registry=registry,
        )
        changes = Counter(
            "visiontower_model_changes_total",
            "Times that an encoder was loaded, could not be loaded, or was evicted to make room for another.",
            ["model", "change"],
            registry=registry,
        )
        self._out_of_memory = Counter(
            "visiontower_out_of_memory_total",
            "Forwards the device had no room for, in spite of the plan.",
            ["model"],
            registry=registry,
        )
        key_requests = Counter(
            "visiontower_key_requests_total", "Requests answered, by access key.", ["key", "status"], registry=registry
        )
        self._key_images = Counter(
            "visiontower_key_images_total",
            "Images in requests that were answered, by access key.",
            ["key"],
            registry=registry,
        )
        self._key_refused = Counter(
            "visiontower_key_refused_total",
            "Requests refused for what their access key may not do, or not now.",
            ["key", "reason"],
            registry=registry,
        )
        self._cache_hits = Counter(
            "visiontower_cache_hits_total", "Images whose result was in the cache.", registry=registry
        )
        self._cache_misses = Counter(
            "visiontower_cache_misses_total",
            "Images whose result was not in the cache, which is on.",
            registry=registry,
        )
        ProcessCollector(registry=registry)  # on Linux; nothing elsewhere
        self._build = {"version": version("visiontower"), "python": platform.python_version()}
        # Looking labels up costs more than counting.
        self._key_requests = cache(key_requests.labels)
        self._stage = cache(stage_seconds.labels)
        self._request = cache(requests.labels)
        self._duration = cache(request_seconds.labels)
        self._forward_bytes = {"activations_predicted": 0, "activations_peak": 0}
        self._decision = cache(admission.labels)
        self._change = changes.labels
        for decision in DECISIONS:
            self._decision(decision)
        for reason in refusals:
            self._rejected.labels(reason)
        for reason in CLOSED:
            self._closed.labels(reason)
        for model in models:
            padding.labels(model).set(0)
            self._tokens.labels(model)
            self._out_of_memory.labels(model)
            self._batch_images.labels(model)
            self._ceilings.labels(model)
            for change in CHANGES:
                self._change(model, change)

    def request(self, record: RequestRecord) -> None:
        """A request has been answered."""
        self._request(record.route, str(record.status), record.protocol).inc()
        exemplar = None if record.trace_id is None else {"trace_id": record.trace_id}
        self._duration(record.route).observe(record.seconds, exemplar)
        if record.model is not None and "serialize" in record.stages:
            self._stage(record.model, "serialize").observe(record.stages["serialize"])
        if record.key is not None:
            self._key_requests(record.key, str(record.status)).inc()
            if record.status < HTTPStatus.BAD_REQUEST:
                self._key_images.labels(record.key).inc(record.images)

    def know_route(self, route: str, protocol: str, *, has_keys: bool) -> None:
        """Its requests begin at 0, by the statuses that alerts look at: a rate misses the first of a new series."""
        for status in (*_WATCHED, *([HTTPStatus.UNAUTHORIZED] if has_keys else [])):
            self._request(route, str(status.value), protocol)

    def know_keys(self, keys: Iterable[Key]) -> None:
        """These are the access keys: their refusals begin at 0, by the limits that each has."""
        for key in keys:
            for reason in LIMITS:
                if getattr(key, reason) is not None:
                    self._key_refused.labels(key.name, reason)

    def key_refused(self, key: str, reason: str) -> None:
        """A request was refused for what its access key may not do, or not now."""
        self._key_refused.labels(key, reason).inc()

    def cached(self, *, hits: int, misses: int) -> None:
        """So many images had their result in the cache, or had not."""
        self._cache_hits.inc(hits)
        self._cache_misses.inc(misses)

    def answered(self, model: str, *, tokens: int, all_stages: Iterable[ImageStages]) -> None:
        """Images have been answered, with so many tokens."""
        self._tokens.labels(model).inc(tokens)
        for stages in all_stages:
            if stages.fetch:
                self._stage(model, "fetch").observe(stages.fetch)
            if stages.decode:
                self._stage(model, "decode").observe(stages.decode)
            if stages.preprocess:
                self._stage(model, "preprocess").observe(stages.preprocess)

    def forward(
        self,
        model: str,
        *,
        size: ImageSize | None,
        items: int,
        ceiling: int,
        is_cut: bool,
        queue_s: Sequence[float],
        forward_s: float,
    ) -> None:
        """A forward has run. size: of its images, None for texts; ceiling: the most items that it could have had.

        is_cut: the memory budget left others waiting.
        Called on a device thread.
        """
        self._decision("split" if is_cut else "whole").inc()
        self._stage(model, "forward").observe(forward_s)
        queue = self._stage(model, "queue")
        for seconds in queue_s:
            queue.observe(seconds)
        if size is None:
            return
        self._batch_images.labels(model).observe(items)
        self._ceilings.labels(model).inc(ceiling)
        seen = self._sizes[model]
        if len(seen) < _SIZES_A_MODEL:
            seen.add(size)
        self._images.labels(model, f"{size.height}x{size.width}" if size in seen else "other").inc(items)

    def measured(self, model: str, *, predicted: int, peak: int, ratio: float) -> None:
        """A forward was measured. Called on a device thread."""
        self._forward_bytes = {"activations_predicted": predicted, "activations_peak": peak}
        self._ratio.labels(model).set(ratio)

    def refused(self) -> None:
        """A request was refused because an image of its shape does not fit the memory budget alone."""
        self._decision("refused").inc()

    def out_of_memory(self, model: str) -> None:
        """A forward ran out of memory. Called on a device thread."""
        self._out_of_memory.labels(model).inc()

    def changed(self, model: str, change: str) -> None:
        """A model was loaded, could not be loaded, or was evicted: one of CHANGES."""
        self._change(model, change).inc()

    def rejected(self, reason: str) -> None:
        """A request was refused."""
        self._rejected.labels(reason).inc()

    def connections(self, number: int) -> None:
        """So many connections are open."""
        self._connections.set(number)

    def closed(self, reason: str) -> None:
        """A connection was closed by a limit."""
        self._closed.labels(reason).inc()

    def exposition(self, now: Now, *, form: Form = TEXT) -> bytes:
        """All of it."""
        return form.write(_Looked(self.families(now)))

    def families(self, now: Now) -> list[Metric]:
        """All of it, for another exporter."""
        return [*self.registry.collect(), *self.gauges(now)]

    def gauges(self, now: Now) -> list[Metric]:
        """What is looked at, not counted."""
        images = GaugeMetricFamily("visiontower_queue_images", "Images that wait for the device.", labels=["model"])
        oldest = GaugeMetricFamily(
            "visiontower_queue_oldest_seconds", "Seconds the oldest waiting item has waited.", labels=["model"]
        )
        ready = GaugeMetricFamily(
            "visiontower_model_ready",
            "1 if the encoder is loaded, its last forward worked, and none hangs.",
            labels=["model"],
        )
        states = GaugeMetricFamily(
            "visiontower_model_state", "1 for the state that the encoder is in.", labels=["model", "state"]
        )
        about = GaugeMetricFamily(
            "visiontower_model_info",
            "Always 1: which weights the encoder has, and how it computes.",
            labels=["model", "revision", "dtype", "device", "runtime"],
        )
        for model, of in now.models.items():
            images.add_metric([model], of.queue_images)
            oldest.add_metric([model], of.oldest_s)
            ready.add_metric([model], float(of.state == "ready"))
            for state in STATES:
                states.add_metric([model, state], float(of.state == state))
            if of.facts:
                about.add_metric([model, *(of.facts[name] for name in ("revision", "dtype", "device", "runtime"))], 1.0)
        vram = GaugeMetricFamily(
            "visiontower_vram_bytes",
            "Device memory by kind; activations are of the last forward that was measured, at its highest point.",
            labels=["device", "kind"],
        )
        for kind, size in {**now.memory, **self._forward_bytes}.items():
            vram.add_metric([now.device, kind], size)
        held = GaugeMetricFamily(
            "visiontower_host_memory_bytes",
            "Host memory that requests hold by stage, and the limit of all together.",
            labels=["stage"],
        )
        for stage, size in now.held.items():
            held.add_metric([stage], size)
        cached = GaugeMetricFamily(
            "visiontower_cache_bytes", "Bytes that the result cache holds, in memory and on disk.", labels=["store"]
        )
        for store, size in now.cached.items():
            cached.add_metric([store], size)
        build = GaugeMetricFamily(
            "visiontower_build_info", "Always 1: the versions of visiontower and Python.", labels=list(self._build)
        )
        build.add_metric(list(self._build.values()), 1.0)
        return [images, oldest, ready, states, about, vram, held, cached, build]


class _Looked(CollectorRegistry):
    """A registry of metrics that were looked at once."""

    def __init__(self, families: Sequence[Metric]) -> None:
        super().__init__(auto_describe=False)
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """As given."""
        return self._families
