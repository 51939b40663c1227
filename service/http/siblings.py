"""The server processes behind one port: they begin to listen together, and each answers /metrics for all.

Their parent keeps the counts: it asks them all, and remembers the last words of those that do not answer or have ended.
So no count ever goes down.
"""

import asyncio
import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from service.errors import Unavailable
from service.telemetry.together import combined

_ASK_S = 2.5
_PARENT_S = 6.0
"""Whoever asks may have to wait until others have been answered, and then for the own answer."""
_PAUSE_S = 0.02
_COUNTED = ("counter", "histogram")
_STARTED = "process_start_time_seconds"
"""The youngest start so far. Without those that have ended, one replacement could change it twice."""


@dataclass(frozen=True)
class Siblings:
    """One process among others behind the same port.

    own: the port on which it answers for itself alone. parent: the port on which the parent gives everybody's metrics.
    started: whether each process is ready to listen; beats: by which the parent sees that each one's event loop runs.
    Both are in memory that all share, and `index` is this one's place in them.
    """

    index: int
    own: int
    parent: int
    started: "ctypes.Array[ctypes.c_bool]"
    beats: "ctypes.Array[ctypes.c_uint64]"

    def beat(self) -> None:
        """Tell the parent that the event loop runs; to be called several times a second."""
        self.beats[self.index] += 1

    async def together(self) -> None:
        """Say that this process is ready to listen, and wait until all are.

        Whoever listens first is given all connections there are, and keeps them for as long as they last.
        """
        self.started[self.index] = True
        while not all(self.started):
            await asyncio.sleep(_PAUSE_S)

    async def exposition(self, own: bytes, *, port: int | None) -> bytes:
        """Everybody's metrics; only the own ones if asked on the own port.

        own: this process' metrics, as text. port: on which they were asked for. Raises Unavailable if the parent does
        not answer: the own ones alone would look like counts that went down.
        """
        if port == self.own:
            return own
        try:
            async with asyncio.timeout(_PARENT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.parent)
                try:
                    text = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise Unavailable("The parent process does not answer for all.", retry_after_s=1) from error
        return text


class Counts:
    """What all processes have counted, in the parent."""

    def __init__(self) -> None:
        self._heard: dict[int, str] = {}  # by process
        self._ended = ""
        self._asking = asyncio.Lock()  # an answer that comes late must not replace a later one
        self._rounds = 0  # begun
        self._last = 0, b""  # that has ended, and what it gave

    async def exposition(self, ports: Mapping[int, int]) -> bytes:
        """The metrics of the processes that serve as one, and the counts of all that have ended.

        ports: on which each answers for itself alone, by process id. All who ask during a round share the next one.
        """
        rounds = self._rounds
        async with self._asking:
            if self._last[0] <= rounds:
                self._rounds += 1
                self._last = self._rounds, await self._asked(ports)
            return self._last[1]

    async def _asked(self, ports: Mapping[int, int]) -> bytes:
        async with httpx.AsyncClient(timeout=_ASK_S, trust_env=False) as client:
            asked = [client.get(f"http://127.0.0.1:{port}/metrics") for port in ports.values()]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            for process, answer in zip(ports, answers, strict=True):
                if isinstance(answer, httpx.Response) and answer.is_success:
                    self._heard[process] = answer.text
            for process in self._heard.keys() - ports.keys():
                self._ended = merged([self._ended, self._heard.pop(process)], is_ended=True).decode()
            return merged([*self._heard.values(), self._ended])


def merged(expositions: Iterable[str], *, is_ended: bool = False) -> bytes:
    """Metrics of several processes as one: counts add up, and of what cannot be added the worst is shown.

    is_ended: of processes that have ended, what they counted and when they started is kept.
    """
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in expositions:
        for family in text_string_to_metric_families(text):
            if is_ended and family.type not in _COUNTED and family.name != _STARTED:
                continue
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known = values.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                value = sample.value
                known[key] = combined(family.name, sample.labels, (known[key], value)) if key in known else value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(families.values()))
    return generate_latest(registry)


class _Given(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """As given."""
        return self._families
