"""Latency against load: Poisson arrivals at shares of what the server can do, by batching policy."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.load import closed_loop, open_loop
from benchmarks.report import Row, Setting
from benchmarks.servers import OURS, running
from benchmarks.works import Work

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


def measure(
    work: Work, *, loads: Sequence[float], seconds: float, warmup_s: float, rounds: int, flags: Sequence[str]
) -> Iterator[Row]:
    """A row a round, load and policy: the same arrivals for all policies, the policies in alternating order.

    loads: of the images that the service's own policy answers in a closed loop of 32 callers.

    All servers are up at once, and the windows of one load follow each other: else the hour is compared, and not the
    policy. Loads rise, so that a backlog does not outlive its row.
    """
    with ExitStack() as servers:
        targets = {
            policy: servers.enter_context(running(OURS, work, flags=[*flags, *policy.flags], program=policy.program))
            for policy in POLICIES
        }
        busy = [
            asyncio.run(closed_loop(target, concurrency=32, seconds=seconds, warmup_s=warmup_s))
            for target in targets.values()
        ]
        for round in range(1, rounds + 1):
            for load in loads:
                rate = load * busy[0].images_per_s
                for policy in POLICIES if round % 2 else reversed(POLICIES):
                    asked = open_loop(targets[policy], rate=rate, seconds=seconds, warmup_s=warmup_s, seed=round)
                    setting = Setting(work.name, policy.name, "", offered=rate)
                    yield report.of_window(setting, asyncio.run(asked), targets[policy], round=round, warmup_s=warmup_s)
