"""Latency against load: Poisson arrivals at shares of what the server can do, by batching policy."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.load import Target, closed_loop, open_loop
from benchmarks.report import Row, Setting
from benchmarks.servers import OURS, running
from benchmarks.works import Work

LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
"""Of what the service answers in a closed loop of 32 callers."""
_WARMUP_S = 4.0
_WAIT_MS, _FULL = "10", "32"


@dataclass(frozen=True)
class Policy:
    """flags: of the service. program: in place of the service's own."""

    name: str
    flags: Sequence[str] = ()
    program: Sequence[str | Path] = ()


POLICIES = (
    Policy("the service's"),
    Policy("no wait at all", program=(sys.executable, "-m", "benchmarks.fixed_wait", "0", _FULL)),
    Policy("fixed wait 10 ms", program=(sys.executable, "-m", "benchmarks.fixed_wait", _WAIT_MS, _FULL)),
    Policy("no batching", flags=("--max-batch", "1")),
)


def measure(work: Work, *, seconds: float, flags: Sequence[str]) -> Iterator[Row]:
    """A row a policy and load. The same arrivals for all; loads rise, so that a backlog does not outlive its row."""
    capacity: float | None = None
    for policy in POLICIES:
        with running(OURS, work, flags=[*flags, *policy.flags], program=policy.program) as target:
            if capacity is None:
                capacity = asyncio.run(closed_loop(target, concurrency=32, seconds=seconds, warmup_s=4)).images_per_s
            for load in LOADS:
                yield _at(target, work, policy, rate=load * capacity, seconds=seconds)


def _at(target: Target, work: Work, policy: Policy, *, rate: float, seconds: float) -> Row:
    setting = Setting(work.name, policy.name, "", offered=rate)
    window = asyncio.run(open_loop(target, rate=rate, seconds=seconds, warmup_s=_WARMUP_S))
    return report.of_window(setting, window, target, round=1, warmup_s=_WARMUP_S)
