"""What the service counts, under the names of the contract. Knows Prometheus; every label is from a closed set."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from encoders.contract.values import ImageSize

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SIZES_A_MODEL = 32
"""Resolutions are the callers' to choose, label values are not: later ones are counted as `other`."""
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

Snapshot = Callable[[str], tuple[int, float]]
"""Model -> images that wait, seconds its oldest item has waited."""

MemoryKinds = Callable[[], tuple[str, Mapping[str, int]]]
"""-> the device, and bytes by kind: weights, allocated, reserved, budget, free, total."""


class Metrics:
    """One registry and what is in it; one per app, so that two apps in a process do not share counts."""

    def __init__(self, models: Sequence[str], *, refusals: Sequence[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, that nobody asked for
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self._models = tuple(models)
        self._sizes: dict[str, set[ImageSize]] = {model: set() for model in models}
        requests = Counter("visiontower_requests_total", "Requests answered.", ["route", "status"], registry=registry)
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
        self._admission = Counter(
            "visiontower_admission_total",
            "Batches that took all that waited (whole) or were cut to the memory budget (split); requests of images "
            "that do not fit it alone (refused).",
            ["decision"],
            registry=registry,
        )
        self._out_of_memory = Counter(
            "visiontower_out_of_memory_total",
            "Forwards the device had no room for, in spite of the plan.",
            ["model"],
            registry=registry,
        )
        # Looking labels up costs more than counting.
        self._stage = cache(stage_seconds.labels)
        self._request = cache(requests.labels)
        self._duration = cache(request_seconds.labels)
        self._forward_bytes = {"activations_predicted": 0, "activations_peak": 0}
        for decision in ("whole", "split", "refused"):
            self._admission.labels(decision)
        for reason in refusals:
            self._rejected.labels(reason)
        for model in models:
            padding.labels(model).set(0)
            self._tokens.labels(model)
            self._out_of_memory.labels(model)
            self._batch_images.labels(model)

    def watch(self, *, snapshot: Snapshot, is_ready: Callable[[str], bool], memory: MemoryKinds) -> None:
        """Read the queue, the models' state and the device's memory whenever the metrics are asked for."""

        def kinds() -> tuple[str, Mapping[str, int]]:
            device, held = memory()
            return device, {**held, **self._forward_bytes}

        self.registry.register(_Live(self._models, snapshot=snapshot, is_ready=is_ready, memory=kinds))

    def stage(self, model: str, stage: str, seconds: float) -> None:
        """Time spent in one stage."""
        self._stage(model, stage).observe(seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self._request(route, str(status)).inc()
        self._duration(route).observe(seconds)

    def batch(self, model: str, size: ImageSize, images: int) -> None:
        """A forward of images has run. Called on a device thread."""
        self._batch_images.labels(model).observe(images)
        seen = self._sizes[model]
        if len(seen) < _SIZES_A_MODEL:
            seen.add(size)
        self._images.labels(model, str(size) if size in seen else "other").inc(images)

    def measured(self, model: str, *, predicted: int, peak: int, ratio: float) -> None:
        """A forward was measured. Called on a device thread."""
        self._forward_bytes = {"activations_predicted": predicted, "activations_peak": peak}
        self._ratio.labels(model).set(ratio)

    def admission(self, decision: str) -> None:
        """A batch was `whole` or `split`, or a request `refused`, by the memory budget."""
        self._admission.labels(decision).inc()

    def out_of_memory(self, model: str) -> None:
        """A forward ran out of memory. Called on a device thread."""
        self._out_of_memory.labels(model).inc()

    def answered(self, model: str, tokens: int) -> None:
        """Tokens have been answered."""
        self._tokens.labels(model).inc(tokens)

    def rejected(self, reason: str) -> None:
        """A request was refused."""
        self._rejected.labels(reason).inc()

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Live(Collector):
    def __init__(
        self, models: Sequence[str], *, snapshot: Snapshot, is_ready: Callable[[str], bool], memory: MemoryKinds
    ) -> None:
        self._models = models
        self._memory = memory
        self._snapshot = snapshot
        self._is_ready = is_ready

    def collect(self) -> Iterable[Metric]:
        """Fresh values."""
        images = GaugeMetricFamily("visiontower_queue_images", "Images that wait for the device.", labels=["model"])
        oldest = GaugeMetricFamily(
            "visiontower_queue_oldest_seconds", "Seconds the oldest waiting item has waited.", labels=["model"]
        )
        ready = GaugeMetricFamily("visiontower_model_ready", "1 if the model's last forward worked.", labels=["model"])
        for model in self._models:
            waiting, age_s = self._snapshot(model)
            images.add_metric([model], waiting)
            oldest.add_metric([model], age_s)
            ready.add_metric([model], float(self._is_ready(model)))
        vram = GaugeMetricFamily(
            "visiontower_vram_bytes",
            "Device memory by kind; activations are of the last forward that was measured, at its highest point.",
            labels=["device", "kind"],
        )
        device, kinds = self._memory()
        for kind, size in kinds.items():
            vram.add_metric([device, kind], size)
        return [images, oldest, ready, vram]
