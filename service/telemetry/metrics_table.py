"""The metrics as Markdown tables, for docs/metrics.md: made of the registry, so that none is missing or gone."""

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric

from service.access.keys import LIMITS
from service.telemetry.metrics import CHANGES, CLOSED, DECISIONS, STATES, Metrics, ModelNow, Now
from service.telemetry.together import together

_READ = ("weights", "allocated", "reserved", "budget", "free", "total")
KINDS = (*_READ, "activations_predicted", "activations_peak")
_HELD = ("body", "image", "input", "text", "answer", "limit")
_FACTS = ("revision", "dtype", "device", "runtime")
_STORES = ("memory", "disk")

_UNITS = {
    "admission": "batches, requests", "closed": "connections", "fds": "open files",
    "hits": "images", "info": "always 1", "memory": "forwards", "misses": "images", "ready": "0 or 1",
    "refused": "requests", "rejected": "requests", "state": "0 or 1",
}  # fmt: skip
"""By the last word of the name; of all others that word is the unit."""


def _named(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


_LABELS: dict[str, str] = {
    "model": "the ids of the served encoders",
    "route": "the routes' templates, such as `/embed` or `/models/{model:path}`; `other` for a path that is none",
    "status": "the HTTP status; 499 if the client left before its answer began",
    "protocol": "`native`, `openai`, `open-inference`, `cohere`, `immich`; `native` where a route is no protocol's",
    "stage of visiontower_stage_seconds": "`fetch`, `decode`, `preprocess`, `queue`, `forward`, `serialize`",
    "stage of visiontower_host_memory_bytes": f"{_named(_HELD)}; `limit` is that of all together",
    "resolution": "height x width, such as `224x224`, of the first 32 of each encoder; `other` for those after them",
    "reason of visiontower_rejected_total": "the problems of status 401, 403, 413, 429 and 503; `GET /problems` has a "
    "page of each",
    "reason of visiontower_connections_closed_total": _named(CLOSED),
    "reason of visiontower_key_refused_total": f"{_named(LIMITS)}: the limit of the key that was met",
    "decision": _named(DECISIONS),
    "change": _named(CHANGES),
    "state": _named(STATES),
    "device": "`cpu`, or `cuda:0` and on",
    "kind": _named(KINDS),
    "key": "the names of the access keys",
    "store": _named(_STORES),
    "revision": "what tells the encoder's weights from others",
    "dtype": "of the encoder's computation",
    "runtime": "`torch` or `openvino`",
    "version": "of visiontower",
    "python": "its version",
}
"""Values by label; where they depend on the metric, by `label of metric`."""


def metrics_table() -> str:
    """A row a metric."""
    lines = ["| metric | type | unit | labels | several processes | meaning |", "|---|---|---|---|---|---|"]
    for family, labels in all_families():
        about = family.type, _unit(family.name), _named(labels), _together(family), family.documentation
        lines.append(f"| `{_name(family)}` | {' | '.join(about)} |")
    return "\n".join(lines) + "\n"


def labels_table() -> str:
    """A row a label, with its closed set of values. Raises KeyError if one has no words here."""
    where: dict[str, None] = {}
    for family, labels in all_families():
        for label in labels:
            where[label if label in _LABELS else f"{label} of {_name(family)}"] = None
    lines = ["| label | values |", "|---|---|"]
    for each in where:
        label, of, metric = each.partition(" of ")
        lines.append(f"| `{label}`{of}{f'`{metric}`' if metric else ''} | {_LABELS[each]} |")
    return "\n".join(lines) + "\n"


def all_families() -> list[tuple[Metric, tuple[str, ...]]]:
    """All there are, by name, each with its labels."""
    metrics = Metrics(["demo:vit"])
    now = Now(
        {"demo:vit": ModelNow(0, 0.0, facts=dict.fromkeys(_FACTS, ""))},
        "cpu",
        dict.fromkeys(_READ, 0),
        dict.fromkeys(_HELD, 0),
        dict.fromkeys(_STORES, 0),
    )
    made = metrics.registry._names_to_collectors  # the only place that knows the labels of a series nobody has counted
    found = []
    for family in sorted(metrics.families(now), key=lambda each: each.name):
        told = {label: None for sample in family.samples for label in sample.labels if label != "le"}
        labels = getattr(made.get(family.name), "_labelnames", None)
        found.append((family, tuple(told if labels is None else labels)))
    return found


def _name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def _unit(name: str) -> str:
    word = name.rpartition("_")[2]
    return _UNITS.get(word, word)


def _together(family: Metric) -> str:
    """How the values of several processes become one."""
    usual = together(family.name, {})
    others: dict[str, list[str]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if (way := together(family.name, {label: value})) != usual:
                others.setdefault(way, []).append(value)
    return "; ".join([usual, *(f"{way} of {_named(values)}" for way, values in others.items())])
