"""The server processes behind one port: they begin to listen together, and each answers /metrics for all."""

import asyncio
import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_ASK_S = 5.0
_PAUSE_S = 0.02
_HIGHEST = ("visiontower_queue_oldest_seconds", "visiontower_vram_prediction_ratio", "visiontower_batch_padding_ratio")
_LOWEST = ("visiontower_model_ready",)
_OF_THE_DEVICE = ("free", "total")
"""Kinds of visiontower_vram_bytes that every process sees whole."""


@dataclass(frozen=True)
class Siblings:
    """One process among others behind the same port.

    ports: on which each answers for itself alone; `own` is this one's. started: whether each is ready to listen, in
    memory that all share.
    """

    ports: tuple[int, ...]
    own: int
    started: "ctypes.Array[ctypes.c_bool]"

    async def together(self) -> None:
        """Say that this process is ready to listen, and wait until all are.

        Whoever listens first is given all connections there are, and keeps them for as long as they last.
        """
        self.started[self.ports.index(self.own)] = True
        while not all(self.started):
            await asyncio.sleep(_PAUSE_S)

    async def exposition(self, own: bytes, *, port: int | None) -> bytes:
        """Everybody's metrics; only the own ones if asked on the own port. One that does not answer is left out.

        own: this process' metrics, as text. port: on which they were asked for.
        """
        if port == self.own:
            return own
        async with httpx.AsyncClient(timeout=_ASK_S, trust_env=False) as client:
            asked = [client.get(f"http://127.0.0.1:{other}/metrics") for other in self.ports if other != self.own]
            answers = await asyncio.gather(*asked, return_exceptions=True)
        texts = [answer.text for answer in answers if isinstance(answer, httpx.Response) and answer.is_success]
        return await asyncio.to_thread(merged, [own.decode(), *texts])


def merged(expositions: Iterable[str]) -> bytes:
    """Metrics of several processes as one: counts add up, and of what cannot be added the worst is shown."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in expositions:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known = values.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                combine = _combination(family.name, sample.labels)
                known[key] = combine((known[key], sample.value)) if key in known else sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(families.values()))
    return generate_latest(registry)


def _combination(family: str, labels: dict[str, str]) -> Callable[[tuple[float, float]], float]:
    if family in _HIGHEST or labels.get("kind") in _OF_THE_DEVICE:
        return max
    return min if family in _LOWEST else sum


class _Given(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """As given."""
        return self._families
