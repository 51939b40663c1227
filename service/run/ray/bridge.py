"""Our metrics by Ray's way: every sample of ours as a gauge of Ray's, so that one scrape of a node sees all replicas.

A counter is a gauge there, and so is a histogram's bucket: each sample keeps its name and labels, and PromQL's rate()
and histogram_quantile() look at nothing else. Ray writes `ray_` before each name.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client.metrics_core import Metric

MakeGauge = Callable[[str, str, tuple[str, ...]], Any]
"""As ray.util.metrics.Gauge: name, description, labels."""


class Bridge:
    """labels: of the replica, beside those of each sample."""

    def __init__(self, make_gauge: MakeGauge, *, labels: Mapping[str, str]) -> None:
        self._make_gauge = make_gauge
        self._labels = dict(labels)
        self._gauges: dict[str, Any] = {}

    def pass_on(self, families: Iterable[Metric]) -> None:
        """Tell Ray all samples, those that have not changed too: it forgets what it is not told again."""
        for family in families:
            for sample in family.samples:
                gauge = self._gauge(sample.name, family.documentation, sample.labels)
                gauge.set(sample.value, {**self._labels, **sample.labels})

    def _gauge(self, name: str, description: str, labels: Mapping[str, str]) -> Any:
        if name not in self._gauges:
            self._gauges[name] = self._make_gauge(name, description, (*self._labels, *labels))
        return self._gauges[name]
