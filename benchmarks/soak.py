"""Resident memory of the server after 1,000 requests and after many more."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from benchmarks.load import Sample, Target, Usage, requests, wrong
from benchmarks.servers import OURS, running
from benchmarks.works import Work

_FIRST = 1_000
_AT_ONCE = 5_000
"""Answers kept before they are checked and dropped."""


@dataclass(frozen=True)
class Soak:
    """Bytes. failed: requests not answered with 200, or wrongly."""

    number: int
    early: int
    late: int
    failed: int

    def __str__(self) -> str:
        return (
            f"resident after {_FIRST:,} requests {self.early / 1e6:.1f} MB, after {self.number:,} "
            f"{self.late / 1e6:.1f} MB: {self.late / self.early - 1:+.1%}; {self.failed} failed"
        )


def measure(work: Work, *, number: int, concurrency: int, flags: Sequence[str]) -> Soak:
    """Starts a server for it."""
    with running(OURS, work, flags=flags) as target:
        failed = _send(target, _FIRST, concurrency)
        early = Usage.of(target.pid).rss
        with tqdm(total=number, initial=_FIRST, unit=" requests", disable=None) as bar:
            for start in range(_FIRST, number, _AT_ONCE):
                some = min(_AT_ONCE, number - start)
                failed += _send(target, some, concurrency)
                bar.update(some)
        return Soak(number, early, Usage.of(target.pid).rss, failed)


def _send(target: Target, number: int, concurrency: int) -> int:
    """Gives how many failed."""
    samples: list[Sample] = asyncio.run(requests(target, number, concurrency=concurrency))
    return wrong(samples, target) + sum(sample.status != 200 for sample in samples)
