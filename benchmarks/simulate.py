"""Latency against load by simulation: the service's own rules for batches, on cores that nothing disturbs.

    python -m benchmarks.simulate
    python -m benchmarks.simulate --model small --load 0.8 --arrivals 100000

On a machine that others use, a p99 of some hundred requests says little. Here Lanes and Patience themselves form the
batches of tens of thousands of Poisson arrivals, and a forward of b images takes a + c b seconds of a core. Decoding
and forwards share the cores evenly; Python serves one request at a time.
"""

import argparse
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.fixed_wait import FixedWait
from benchmarks.serve import names
from encoders.adapters.fake import FakeBlueprint
from encoders.contract.values import ImageSize, Outputs
from service.memory.shape import ImageShape
from service.scheduling.lanes import BRIEF_S, Lanes
from service.scheduling.patience import Patience

_CORES = 2
_NEVER = float("inf")
_MOMENT_S = 1e-9
"""Less than this is no time: sums of floats do not end exactly."""
_CALLERS = (4, 8, 16, 32)


@dataclass(frozen=True)
class Costs:
    """Seconds of a core: of a forward and of each of its images; of decoding, and of Python before and after it."""

    forward: float
    image: float
    decode: float
    before: float = 0.0006
    after: float = 0.0003


MODELS = {
    "vit-b-32": Costs(0.0125, 0.0426, decode=0.0021),
    "rn50": Costs(0.008, 0.056, decode=0.0021),
    "small": Costs(0.0024, 0.00021, decode=0.0004, before=0.0005, after=0.00025),
}
"""As measured with one core: python -m benchmarks.costs for Python's part."""
POLICIES: dict[str, Callable[[], Patience]] = {
    "the service's": Patience,
    "no wait at all": partial(FixedWait, wait_s=0.0, full=32),
    "fixed wait 10 ms": partial(FixedWait, wait_s=0.01, full=32),
    "no batching": Patience,
}
_SIZE, _OUTPUTS = ImageSize(224, 224), Outputs(pooled=True)
_SHAPE = ImageShape("simulated", _SIZE, _OUTPUTS, FakeBlueprint().cost(_SIZE, _OUTPUTS, device="cpu"))


@dataclass(eq=False)
class _Task:
    """left: seconds of a core still to do. threads: cores it can use. done: called at its end."""

    left: float
    threads: int
    done: Callable[[], None]


@dataclass
class Simulation:
    """One server. rate: arrivals a second; None for callers that ask again when they are answered."""

    costs: Costs
    patience: Patience
    most: int = 1000
    rate: float | None = None
    seed: int = 0
    now: float = 0.0
    latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._lanes = Lanes(_CORES, brief_s=BRIEF_S)
        self._tasks: list[_Task] = []
        self._python: deque[tuple[float, Callable[[], None]]] = deque()
        self._decoding: deque[tuple[float, float]] = deque()  # when it was asked for, and when its pixels were expected
        self._at_python = self._decoders = 0
        self._waiting: deque[tuple[float, float]] = deque()  # when it was asked for, and when it was ready
        self._forward_s = 0.0
        self._look_again = _NEVER

    def run(self, answers: int, *, callers: int = 0) -> "Simulation":
        """Until so many are answered."""
        for _ in range(callers):
            self._ask()
        self._go_on()
        arrival = self.now + self._rng.expovariate(self.rate) if self.rate else _NEVER
        while len(self.latencies) < answers:
            speed = min(1.0, _CORES / max(1, sum(task.threads for task in self._tasks)))
            first = min(self._tasks, key=lambda task: task.left / task.threads, default=None)
            ends = self.now + first.left / first.threads / speed if first else _NEVER
            then = min(ends, arrival, self._look_again)
            for task in self._tasks:
                task.left -= (then - self.now) * speed * task.threads
            self.now = then
            if then == arrival:
                arrival += self._rng.expovariate(self.rate or 1.0)
                self._ask()
            elif first is not None and then == ends:
                self._tasks.remove(first)
                first.done()
            self._go_on()
        return self

    def _ask(self) -> None:
        self._python.append((self.costs.before, partial(self._expect, self.now)))

    def _expect(self, asked: float) -> None:
        self.patience.expect(_SHAPE, now=self.now)
        self._decoding.append((asked, self.now))

    def _go_on(self) -> None:
        if self._python and not self._at_python:
            seconds, then = self._python.popleft()
            self._at_python = 1
            self._tasks.append(_Task(seconds * self._rng.uniform(0.7, 1.3), 1, partial(self._said, then)))
        while self._decoding and self._decoders < _CORES:
            self._decoders += 1
            asked, expected = self._decoding.popleft()
            seconds = self.costs.decode * self._rng.uniform(0.7, 1.3)
            self._tasks.append(_Task(seconds, 1, partial(self._decoded, asked, expected)))
        self._look_again = _NEVER
        while self._waiting and self._begin():
            pass

    def _said(self, then: Callable[[], None]) -> None:
        self._at_python = 0
        then()

    def _decoded(self, asked: float, expected: float) -> None:
        self._decoders -= 1
        self._waiting.append((asked, self.now))
        self.patience.arrived(_SHAPE, expected=expected, in_line=len(self._waiting))

    def _begin(self) -> bool:
        """As the device threads take their work."""
        lanes, waiting = self._lanes, len(self._waiting)
        if lanes.is_alone or lanes.busy >= lanes.abreast(self._forward_s):
            return False
        wait_s = self.patience.wait_s(
            _SHAPE,
            waiting=waiting,
            enough=lanes.enough(self._forward_s),
            forward_s=self._forward_s,
            since=self._waiting[0][1],
            now=self.now,
        )
        if wait_s > _MOMENT_S:
            self._look_again = self.now + wait_s
            return False
        alone = waiting == 1 and not lanes.busy and not self.patience.coming
        share = min(self.most, waiting, lanes.share(waiting, forward_s=self._forward_s))
        batch = [self._waiting.popleft()[0] for _ in range(share)]
        lane = lanes.next
        part = lanes.enter(lane, now=self.now, alone=alone)
        seconds = self.costs.forward + self.costs.image * len(batch)
        self._tasks.append(_Task(seconds, _CORES // part, partial(self._ran, lane, batch, self.now)))
        return True

    def _ran(self, lane: int, batch: list[float], began: float) -> None:
        self._lanes.leave(lane)
        self._forward_s = self.now - began
        self._python.extend((self.costs.after, partial(self._answered, asked)) for asked in batch)

    def _answered(self, asked: float) -> None:
        self.latencies.append(self.now - asked)
        if self.rate is None:
            self._ask()


def simulated(costs: Costs, policy: str, *, rate: float | None = None, answers: int, callers: int = 0) -> Simulation:
    """One run."""
    most = 1 if policy == "no batching" else 1000
    return Simulation(costs, POLICIES[policy](), most, rate).run(answers, callers=callers)


def main() -> None:
    """Print a table a model."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    loads = lambda text: [float(each) for each in text.split(",")]  # noqa: E731
    parser.add_argument("--model", type=names(MODELS), default=list(MODELS), help=f"of {', '.join(MODELS)} [all]")
    parser.add_argument("--load", type=loads, default=[0.4, 0.8], help="of what 32 callers reach [0.4,0.8]")
    parser.add_argument("--arrivals", type=int, default=50_000, help="[50000]")
    a = parser.parse_args()
    for model in a.model:
        costs, few = MODELS[model], a.arrivals // 8
        columns = [f"{callers} callers" for callers in _CALLERS] + [f"{load:.0%}, p50 / p99 ms" for load in a.load]
        table = Table(f"{model}, images/s", *columns, box=None, pad_edge=False)
        capacity = _reached(simulated(costs, "the service's", answers=few, callers=32))
        for policy in POLICIES:
            closed = (_reached(simulated(costs, policy, answers=few, callers=each)) for each in _CALLERS)
            opened = (simulated(costs, policy, rate=load * capacity, answers=a.arrivals) for load in a.load)
            times = [np.percentile(np.multiply(run.latencies, 1000), (50, 99)) for run in opened]
            table.add_row(
                policy, *(f"{rate:.4g}" for rate in closed), *(f"{p50:.3g} / {p99:.3g}" for p50, p99 in times)
            )
        Console(width=120).print(table)


def _reached(run: Simulation) -> float:
    return len(run.latencies) / run.now


if __name__ == "__main__":
    main()
