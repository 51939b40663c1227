"""Device threads of which a test sets the limits, the clock and the order."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from encoders.adapters.fake import FakeEncoder, FakeMemory
from encoders.contract.errors import EncoderFailed, VisiontowerError
from encoders.contract.values import Encoded, ImageSize, Pixels
from encoders.memory.prediction import CPU
from service.memory.budget import Budget
from service.memory.measurement import Measurement
from service.memory.shape import ImageShape, Shape
from service.scheduling.device_threads import DeviceThreads, Expected
from service.scheduling.lanes import Lanes
from service.scheduling.limits import BatchLimits, Limit
from service.scheduling.patience import Patience
from service.scheduling.resident import Resident
from service.telemetry.metrics import Metrics
from tests.support.shapes import MODEL, image_shape, text_shape

NEVER = float("inf")
SHAPE = image_shape()
TEXT = text_shape()


class FixedLimits(BatchLimits):
    """Ceilings that a test sets, one for all shapes or by shape. alone: shapes that may have nothing beside them.

    learnt: the forwards that it was told of; they change no ceiling.
    """

    def __init__(self, ceiling: int | Callable[[Shape], int] = 8, *, alone: Collection[Shape] = ()) -> None:
        super().__init__(Budget(limit=2**60, overhead=CPU), longest_s=math.inf)
        self._fixed = ceiling
        self._alone = alone
        self.learnt: list[tuple[Shape, int, float]] = []

    def of(self, shape: Shape) -> Limit:
        ceiling = self._fixed if isinstance(self._fixed, int) else self._fixed(shape)
        return Limit(ceiling, shape in self._alone, super().of(shape).forward_s)

    def is_full(self, shape: Shape, items: int) -> bool:
        return items >= self.of(shape).ceiling

    def ran(self, shape: Shape, items: int, seconds: float) -> None:
        super().ran(shape, items, seconds)
        self.learnt.append((shape, items, seconds))


@dataclass(frozen=True)
class CountedForward:
    """The arguments of one Metrics.forward."""

    model: str
    size: ImageSize | None
    items: int
    ceiling: int
    is_cut: bool
    queue_s: list[float]
    forward_s: float


class RecordingMetrics(Metrics):
    """Metrics that also write the forwards down."""

    def __init__(self, *models: str) -> None:
        super().__init__(models or (MODEL,), refusals=())
        self.forwards: list[CountedForward] = []

    def forward(self, model: str, *, queue_s: Any, **counts: Any) -> None:
        super().forward(model, queue_s=queue_s, **counts)
        self.forwards.append(CountedForward(model, queue_s=list(queue_s), **counts))


class Gate:
    """Holds forwards while it is closed; `entered` is set when one waits at it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def __call__(self, batch: int) -> None:
        self.entered.set()
        assert self.open.wait(30), "the test never opened the gate"

    async def shut_with_one_inside(self, submit: Callable[[], asyncio.Future[Any]]) -> asyncio.Future[Any]:
        """Close, submit one item, and wait until a device thread holds it."""
        self.open.clear()
        self.entered.clear()
        future = submit()
        assert await asyncio.to_thread(self.entered.wait, 30)
        return future


class AtWork:
    """A Forward that leaves its device at work until somebody waits for it."""

    is_done = False

    def __init__(self, finish: Callable[[], Encoded]) -> None:
        self._finish = finish

    def wait(self) -> Encoded:
        return self._finish()


class Later(Executor):
    """A pool whose work the test runs."""

    def __init__(self) -> None:
        self.work: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.work.append(partial(fn, *args, **kwargs))

    def run(self) -> None:
        while self.work:
            self.step()

    def step(self) -> None:
        """Only what has waited longest."""
        self.work.pop(0)()


def image(value: int, shape: ImageShape = SHAPE) -> Pixels:
    """A plain image of this shape."""
    return np.full((*shape.size, 3), value, dtype=np.uint8)


def submit_made(
    threads: DeviceThreads,
    resident: Resident,
    shape: ImageShape,
    make: Callable[[], Pixels],
    *,
    pool: Executor,
    deadline: float = NEVER,
) -> asyncio.Future[Any]:
    """Submit an image that is made on a pool, as the engine's Images do."""
    expected = threads.expect(resident, shape, deadline=deadline)
    pool.submit(_fill, expected, make)
    return expected.future


def _fill(expected: Expected, make: Callable[[], Pixels]) -> None:
    if expected.future.done():
        expected.fail(None)
        return
    try:
        pixels = make()
    except VisiontowerError as error:
        expected.fail(error)
    except BaseException as error:
        failed = EncoderFailed("could not prepare the image")
        failed.__cause__ = error
        expected.fail(failed)
    else:
        expected.fill(pixels)


def alone(value: int, shape: ImageShape = SHAPE) -> Any:
    """The pooled vector that the fake encoder gives an image by itself."""
    return FakeEncoder().encode(image(value, shape)[None], shape.outputs).row(0).pooled


@dataclass(frozen=True)
class Device:
    """Threads that run, and an encoder on their device. Images are known by their value."""

    threads: DeviceThreads
    resident: Resident
    limits: FixedLimits
    metrics: RecordingMetrics

    def submit(self, value: int, shape: ImageShape = SHAPE, *, deadline: float = NEVER) -> asyncio.Future[Any]:
        return self.threads.submit(self.resident, shape, image(value, shape), deadline=deadline)

    def submit_set(self, *values: int, shape: ImageShape = SHAPE) -> list[asyncio.Future[Any]]:
        payloads = [image(value, shape) for value in values]
        return self.threads.submit_set(self.resident, shape, payloads, deadline=NEVER)

    def submit_text(self, text: str) -> asyncio.Future[Any]:
        return self.threads.submit(self.resident, TEXT, self.resident.encoder.tokenize([text]).ids[0], deadline=NEVER)

    def submit_made(
        self, make: int | Callable[[], Pixels], *, pool: Executor, shape: ImageShape = SHAPE
    ) -> asyncio.Future[Any]:
        """make: the image's value, or what makes it."""
        function = partial(image, make, shape) if isinstance(make, int) else make
        return submit_made(self.threads, self.resident, shape, function, pool=pool)

    @asynccontextmanager
    async def occupied(self) -> AsyncIterator[None]:
        """What is submitted inside waits together: the device is in a call meanwhile."""
        entered, left = threading.Event(), threading.Event()

        def wait() -> None:
            entered.set()
            assert left.wait(30)

        call = asyncio.create_task(self.threads.call(wait))
        assert await asyncio.to_thread(entered.wait, 30)
        try:
            yield
        finally:
            left.set()
            await call

    async def submit_together(self, *values: int, deadline: float = NEVER) -> list[asyncio.Future[Any]]:
        async with self.occupied():
            return [self.submit(value, deadline=deadline) for value in values]


@asynccontextmanager
async def running(
    encoder: FakeEncoder,
    *,
    ceiling: int | Callable[[Shape], int] = 8,
    runs_alone: Collection[Shape] = (),
    clock: Callable[[], float] = time.monotonic,
    lanes: Lanes | None = None,
    patience: Patience | None = None,
    other_models: Collection[str] = (),
) -> AsyncIterator[Device]:
    """The encoder on a device of its own, stopped at the end. other_models: whose encoders the test brings itself."""
    limits = FixedLimits(ceiling, alone=runs_alone)
    metrics = RecordingMetrics(encoder.spec.id, *other_models)
    threads = DeviceThreads(
        limits=limits,
        measurement=Measurement(FakeMemory(2**60), Budget(limit=2**60, overhead=CPU), metrics),
        metrics=metrics,
        clock=clock,
        lanes=lanes,
        patience=patience,
    )
    threads.start()
    try:
        yield Device(threads, Resident(encoder), limits, metrics)
    finally:
        await threads.stop(timeout_s=30)
