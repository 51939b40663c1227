"""What an idle server adds to a request: its own total, less decode, preprocess and forward."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from benchmarks.load import Sample, requests, wrong
from benchmarks.servers import OURS, running
from benchmarks.works import Work

_WARMUP = 20
_REQUESTS = 200


@dataclass(frozen=True)
class Idle:
    """Milliseconds, medians of single requests, one after the other."""

    work: str
    requests: int
    added: float
    added_p95: float
    total: float
    seen_by_client: float

    def __str__(self) -> str:
        return (
            f"{self.work}: an idle server adds {self.added:.2f} ms (p95 {self.added_p95:.2f}) to decode, preprocess "
            f"and forward; total {self.total:.2f} ms, seen by the client {self.seen_by_client:.2f} ms; "
            f"medians of {self.requests} requests"
        )


def measure(work: Work, *, flags: Sequence[str]) -> Idle:
    """Starts a server for it. Raises RuntimeError if an answer was wrong or none."""
    with running(OURS, work, flags=flags) as target:
        samples = asyncio.run(requests(target, _WARMUP + _REQUESTS, concurrency=1))[_WARMUP:]
        if wrong(samples, target) or any(sample.status != 200 for sample in samples):
            raise RuntimeError("not every answer was right")
    return of_samples(work.name, samples)


def of_samples(work: str, samples: Sequence[Sample]) -> Idle:
    """From the times in the answers."""
    times = [orjson.loads(sample.body)["timing_ms"] for sample in samples]
    added = [t["total"] - t["decode"] - t["preprocess"] - t["forward"] for t in times]
    p50, p95 = np.percentile(added, (50, 95))
    return Idle(
        work,
        requests=len(samples),
        added=float(p50),
        added_p95=float(p95),
        total=float(np.median([t["total"] for t in times])),
        seen_by_client=1000 * float(np.median([sample.seconds for sample in samples])),
    )
