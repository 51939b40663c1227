"""Load on one server: closed loop (so many callers, each waiting for its answer) and open loop (Poisson arrivals).

Answers are kept as they came and looked at after the window: checking them must not take cores from the server.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.http1 import Address, Connection
from benchmarks.works import RIGHT, Vectors

_GRACE_S = 30.0
"""How long requests under way at a window's end are waited for. Then the server is taken to hang."""
_CONNECTIONS = 1024


@dataclass(frozen=True)
class Target:
    """A server and what it must answer.

    requests: one a picture. references: [N, E], rows of length 1. vector: reads an answer's body.
    pid: of the server, whose children are counted with it.
    """

    address: Address
    requests: Sequence[bytes]
    references: Vectors
    vector: Callable[[bytes], Sequence[float]]
    pid: int


@dataclass(frozen=True)
class Sample:
    """One request. status: 0 if the server hung up. ended: on time.monotonic. seconds: from when it was due."""

    picture: int
    status: int
    ended: float
    seconds: float
    body: bytes


@dataclass(frozen=True)
class Usage:
    """Of a process and its children. cpu_s: user and system so far; rss: resident bytes, shared pages counted twice."""

    cpu_s: float
    rss: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """Now. What ends while it is looked at is left out."""
        parent = psutil.Process(pid)
        cpu_s, rss = 0.0, 0
        for process in (parent, *parent.children(recursive=True)):
            try:
                times = process.cpu_times()
                cpu_s += times.user + times.system
                rss += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return cls(cpu_s, rss)


@dataclass(frozen=True)
class Window:
    """What was answered within `seconds`, and what it took. lost: requests that were never answered."""

    seconds: float
    samples: Sequence[Sample]
    lost: int
    before: Usage
    after: Usage
    client_cpu_s: float

    @property
    def answered(self) -> list[Sample]:
        """With status 200."""
        return [sample for sample in self.samples if sample.status == 200]

    @property
    def images_per_s(self) -> float:
        """Answered with status 200."""
        return len(self.answered) / self.seconds

    @property
    def cores(self) -> float:
        """How many cores the server kept busy."""
        return (self.after.cpu_s - self.before.cpu_s) / self.seconds

    @property
    def client_cores(self) -> float:
        """And the load generator."""
        return self.client_cpu_s / self.seconds

    @property
    def errors(self) -> dict[str, int]:
        """Number by status; `hung up` and `unanswered` where there was none."""
        failed = Counter(str(s.status or "hung up") for s in self.samples if s.status != 200)
        return dict(failed) | ({"unanswered": self.lost} if self.lost else {})


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95 and p99; NaN if there is nothing."""
    if not seconds:
        return (float("nan"),) * 3
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
    return float(p50), float(p95), float(p99)


def wrong(samples: Sequence[Sample], target: Target) -> int:
    """How many answers with status 200 are not what the model gives for that picture."""
    return sum(not _is_right(sample, target) for sample in samples if sample.status == 200)


def _is_right(sample: Sample, target: Target) -> bool:
    try:
        vector = np.asarray(target.vector(sample.body), np.float32)
        cosine = float(vector @ target.references[sample.picture] / np.linalg.norm(vector))
    except (ValueError, LookupError, TypeError):
        return False
    return cosine >= RIGHT


async def closed_loop(
    target: Target,
    *,
    concurrency: int,
    seconds: float,
    warmup_s: float = 0.0,
    progress: Callable[[int], None] = lambda answered: None,
) -> Window:
    """`concurrency` callers for `seconds` after `warmup_s`. progress: told about once a second what has been answered.

    What was sent during the warm-up and answered in the window counts; what the window's end cuts off does not.
    """
    ends = time.monotonic() + warmup_s + seconds
    pictures = _until(ends, len(target.requests))
    samples: list[Sample] = []
    callers = [asyncio.create_task(_call(target, pictures, samples)) for _ in range(concurrency)]
    window = await _watch(target, samples, warmup_s=warmup_s, seconds=seconds, progress=progress)
    return replace(window, lost=await _finish(callers))


async def requests(target: Target, number: int, *, concurrency: int) -> list[Sample]:
    """That many requests, as a closed loop."""
    samples: list[Sample] = []
    pictures = iter([index % len(target.requests) for index in range(number)])
    await asyncio.gather(*(_call(target, pictures, samples) for _ in range(concurrency)))
    return samples


async def open_loop(
    target: Target,
    *,
    rate: float,
    seconds: float,
    warmup_s: float = 0.0,
    seed: int = 0,
    progress: Callable[[int], None] = lambda answered: None,
) -> Window:
    """Poisson arrivals, `rate` a second, whatever the server does; latencies count from when a request was due."""
    samples: list[Sample] = []
    pool: list[Connection] = []
    free = asyncio.Semaphore(_CONNECTIONS)
    callers: list[asyncio.Task[None]] = []

    async def arrive(picture: int, due: float) -> None:
        async with free:
            connection = pool.pop() if pool else None
            connection, sample = await _ask(target, connection, picture, due)
            samples.append(sample)
            if connection is not None:
                pool.append(connection)

    async def arrivals() -> None:
        for index, at in enumerate(poisson(rate, warmup_s + seconds, seed=seed)):
            due = started + at
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            callers.append(asyncio.create_task(arrive(index % len(target.requests), due)))

    started = time.monotonic()
    sending = asyncio.create_task(arrivals())
    window = await _watch(target, samples, warmup_s=warmup_s, seconds=seconds, progress=progress)
    sending.cancel()
    lost = await _finish(callers)
    for connection in pool:
        connection.close()
    # In an open loop what came late is the point: all that was due in the window counts, whenever it was answered.
    opened = started + warmup_s
    due = [sample for sample in samples if opened <= sample.ended - sample.seconds < opened + seconds]
    return replace(window, seconds=seconds, samples=due, lost=lost)


def poisson(rate: float, seconds: float, *, seed: int) -> npt.NDArray[np.float64]:
    """Times of arrival from 0 to `seconds`, at random, but `rate` a second in all: a load is what it is said to be.

    A Poisson process whose number of events is known is that many independent times. Left open, the number alone may be
    a tenth off in a window of 20 s.
    """
    return np.sort(np.random.default_rng(seed).uniform(0.0, seconds, round(rate * seconds)))


def _until(ends: float, pictures: int) -> Iterator[int]:
    for index in count():
        if time.monotonic() >= ends:
            return
        yield index % pictures


async def _call(target: Target, pictures: Iterator[int], samples: list[Sample]) -> None:
    """A caller: one request after the other."""
    connection: Connection | None = None
    try:
        for picture in pictures:
            connection, sample = await _ask(target, connection, picture, time.monotonic())
            samples.append(sample)
            if sample.status == 0:
                await asyncio.sleep(0.1)  # a server that hangs up on everybody would be asked in a tight loop
    finally:
        if connection is not None:
            connection.close()


async def _ask(
    target: Target, connection: Connection | None, picture: int, due: float
) -> tuple[Connection | None, Sample]:
    """The connection for the next request, None if it must be a new one; and how it went."""
    try:
        if connection is None or not connection.is_open:
            connection = await Connection.open(target.address)
        status, body = await connection.ask(target.requests[picture])
    except OSError:  # ConnectionError is one
        connection, status, body = None, 0, b""
    ended = time.monotonic()
    return connection, Sample(picture, status, ended, ended - due, body)


async def _watch(
    target: Target, samples: list[Sample], *, warmup_s: float, seconds: float, progress: Callable[[int], None]
) -> Window:
    """Wait out the warm-up and the window; gives what was answered in the window."""
    with _without_collections():
        await asyncio.sleep(warmup_s)
        opened, first = time.monotonic(), len(samples)
        before, client = Usage.of(target.pid), time.process_time()
        while (left := opened + seconds - time.monotonic()) > 0:
            await asyncio.sleep(min(1.0, left))
            progress(len(samples) - first)
        took, inside = time.monotonic() - opened, samples[first:]
        client_cpu_s = time.process_time() - client
        return Window(took, inside, 0, before, Usage.of(target.pid), client_cpu_s)


async def _finish(callers: Sequence[asyncio.Task[None]]) -> int:
    """Let requests under way end; gives how many did not in time."""
    if not callers:
        return 0
    done, late = await asyncio.wait(callers, timeout=_GRACE_S)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        task.result()
    return len(late)


@contextmanager
def _without_collections() -> Iterator[None]:
    """A collection over all the kept answers stops the load for longer than a request takes: one is made ahead."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
