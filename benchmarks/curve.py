"""Latency against load: Poisson arrivals at shares of what the server can do, by batching policy."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.load import closed_loop, open_loop
from benchmarks.report import Row, Setting
from benchmarks.servers import OURS, running
from benchmarks.works import Work

LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
"""Of what the service answers in a closed loop of 32 callers."""
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


def measure(work: Work, *, seconds: float, warmup_s: float, rounds: int, flags: Sequence[str]) -> Iterator[Row]:
    """A row a round, policy and load: the same arrivals for all policies, the policies in alternating order.

    Loads rise, so that a backlog does not outlive its row.
    """
    capacity: float | None = None
    for round in range(1, rounds + 1):
        for policy in POLICIES if round % 2 else reversed(POLICIES):
            with running(OURS, work, flags=[*flags, *policy.flags], program=policy.program) as target:
                if capacity is None:
                    closed = asyncio.run(closed_loop(target, concurrency=32, seconds=seconds, warmup_s=warmup_s))
                    capacity = closed.images_per_s
                for load in LOADS:
                    rate = load * capacity
                    window = asyncio.run(open_loop(target, rate=rate, seconds=seconds, warmup_s=warmup_s, seed=round))
                    setting = Setting(work.name, policy.name, "", offered=rate)
                    yield report.of_window(setting, window, target, round=round, warmup_s=warmup_s)
