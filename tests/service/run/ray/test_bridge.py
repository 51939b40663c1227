"""What Ray is told of our metrics."""

from typing import Any

from service.run.ray.bridge import Bridge
from service.telemetry.metrics import Metrics, ModelNow, Now


class Gauges:
    """As ray.util.metrics, kept: (name, labels) -> value."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self.made: list[str] = []

    def __call__(self, name: str, description: str, labels: tuple[str, ...]) -> Any:
        self.made.append(name)
        gauges = self

        class Gauge:
            def set(self, value: float, tags: dict[str, str]) -> None:
                assert tags.keys() == set(labels)
                gauges.values[name, frozenset(tags.items())] = value

        return Gauge()

    def of(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset({**labels, "replica": "r1"}.items())]


def test_every_sample_keeps_its_name_its_labels_and_its_value() -> None:
    metrics, gauges = Metrics(["a"]), Gauges()
    bridge = Bridge(gauges, labels={"replica": "r1"})
    now = Now({"a": ModelNow(3, 0.5)}, "cpu", {"weights": 10}, {})
    for seconds in (0.02, 7.0):
        metrics.forward("a", size=None, items=1, ceiling=8, is_cut=False, queue_s=[], forward_s=seconds)
        bridge.pass_on(metrics.families(now))
    assert gauges.of("visiontower_queue_images", model="a") == 3
    assert gauges.of("visiontower_vram_bytes", device="cpu", kind="weights") == 10
    assert gauges.of("visiontower_admission_total", decision="whole") == 2
    assert gauges.of("visiontower_stage_seconds_bucket", model="a", stage="forward", le="0.025") == 1
    assert gauges.of("visiontower_stage_seconds_bucket", model="a", stage="forward", le="+Inf") == 2
    assert gauges.of("visiontower_stage_seconds_sum", model="a", stage="forward") == 7.02
    assert len(gauges.made) == len(set(gauges.made)), "one gauge a name"
    shown = {line.partition("{")[0].partition(" ")[0] for line in metrics.exposition(now).decode().splitlines()}
    assert shown - {"#", ""} == set(gauges.made)
