"""CUDA graphs of forwards that come often: recorded once, replayed by one call. Knows torch; knows no encoder.

A forward of few images is hundreds of brief kernels, and a card waits while Python launches one after the other. A
replay launches all of them at once. They are the kernels of the eager forward at the same batch, so values are equal.

Nothing here has been measured on a card (docs/speed.md).
"""

import logging
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from encoders.contract.values import ImageSize, Outputs
from encoders.memory.prediction import CUDA, MIB
from encoders.runtime.tower import Features

T = TypeVar("T")
_log = logging.getLogger(__name__)

LARGEST = 8
"""Images in one graph, at most. A larger forward should keep a card at work while Python launches it. Not measured."""
_OFTEN = 16
"""A forward is recorded when it comes for the so many-th time: recording takes as long as a few forwards."""
_DRIVER = 16 * MIB
"""What the driver holds for one graph: an allowance, not measured."""
_SHAPES = 10_000
"""Keys that are counted. Callers can think of any number of sizes."""


class Key(NamedTuple):
    """What a graph is of. owner: whose weights it reads. batch: exactly so many images, none of them padding."""

    owner: weakref.ref[object]
    size: ImageSize
    outputs: Outputs
    batch: int


class Recorder(Protocol):
    """Records what a card is told to do."""

    def measured(self, run: Callable[[], T]) -> tuple[T, int]:
        """What `run` gives, for its shapes alone, and the bytes that it took at its highest point.

        It is to be called before `record`: libraries make their handles and choose their kernels at a first call.
        """

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """A function that has the card do again what `run` tells it, on the tensors that `run` had.

        `run` must not look at values or wait for the card. What it makes is gone at its end, and may be written over
        between replays. Raises torch.OutOfMemoryError, or what torch says of a `run` that cannot be recorded.
        """


class CudaRecorder:
    """A Recorder of CUDA graphs. Whatever they make and drop lies in one pool, as one graph runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._failed: list[torch.cuda.CUDAGraph] = []
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not type it
            self._pool = torch.cuda.MemPool()

    def measured(self, run: Callable[[], T]) -> tuple[T, int]:
        """As Recorder.measured: on the stream of records, where libraries keep a workspace for each stream."""
        forwards = torch.cuda.current_stream(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._stream.wait_stream(forwards)
        with torch.cuda.stream(self._stream):
            given = run()
        forwards.wait_stream(self._stream)
        return given, torch.cuda.max_memory_allocated(self._device) - before

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """As Recorder.record. Waits for the card. Other threads may go on using it: weights may be on their way."""
        graph, pool = torch.cuda.CUDAGraph(), self._pool.id
        recording = torch.cuda.graph(
            graph,
            pool=pool,  # type: ignore[arg-type]  # torch types handles
            stream=self._stream,
            capture_error_mode="thread_local",
        )
        forwards = torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.stream(forwards), recording:  # which leaves its stream the current one if it cannot begin
                run()
        except torch.OutOfMemoryError:
            raise
        except Exception:
            self._end(graph, pool)
            raise
        return graph.replay

    def _end(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        """End a recording that failed: torch's allocators would wait for it, and ask the graph whose memory is whose.

        Torch 2.15 does so when the graph is reset, older ones do not.
        """
        self._failed.append(graph)
        with suppress(RuntimeError):
            graph.reset()
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._stream.device.index, pool)


@dataclass(frozen=True)
class Graph:
    """A recorded forward.

    pixels, features: where it reads and writes: its own for good. scratch: bytes of the pool that it works in.
    """

    replay: Callable[[], None]
    pixels: Tensor
    features: Features
    scratch: int

    def run(self, pixels: Tensor) -> Features:
        """The features of these pixels, which are on the card. The next run, in the same stream, writes over them."""
        self.pixels.copy_(pixels)
        self.replay()
        return self.features


class Graphs:
    """Which forwards are recorded, and which records stay. Of the thread that owns the card.

    limit: bytes that they may take together. The one used longest ago makes room for another.
    """

    def __init__(self, recorder: Recorder, *, limit: int) -> None:
        self._recorder = recorder
        self._limit = limit
        self._kept: OrderedDict[Key, Graph] = OrderedDict()
        self._asked: Counter[Key] = Counter()
        self._eager: set[weakref.ref[object]] = set()  # owners of forwards that cannot be recorded
        self.forwards = 0
        """Forwards that were recorded or replayed: a replay takes no memory anew."""

    @property
    def taken(self) -> int:
        """Bytes that they take: a pool as large as one of them needs at most, and what each holds by itself."""
        return self._bytes() if self._kept else 0

    def find(self, key: Key) -> Graph | None:
        """The graph of this key, if there is one; it counts as used."""
        graph = self._kept.get(key)
        if graph is not None:
            self._kept.move_to_end(key)
        return graph

    def is_due(self, key: Key) -> bool:
        """Whether this forward, of which there is no graph, is to be recorded now. To be asked at each."""
        if key.batch > LARGEST or key.owner in self._eager:
            return False
        if len(self._asked) >= _SHAPES:
            self._asked.clear()
        self._asked[key] += 1
        return self._asked[key] == _OFTEN

    def run(self, graph: Graph, pixels: Tensor) -> Features:
        """As Graph.run."""
        self.forwards += 1
        return graph.run(pixels)

    def record(self, key: Key, forward: Callable[[Tensor], Features], pixels: Tensor) -> Features:
        """Record a forward, if there is room, and give its features of these pixels, which are on the card.

        What cannot be recorded stays eager; the log says so.
        """
        self.forwards += 1
        try:
            graph = self._recorded(forward, pixels)
        except torch.OutOfMemoryError:
            _log.warning("a forward of %d at %s stays eager: the card had no room to record it", key.batch, key.size)
        except Exception:
            self._eager.add(key.owner)
            _log.exception("a forward of %d at %s cannot be recorded: its encoder stays eager", key.batch, key.size)
        else:
            if graph is not None:
                self._kept[key] = graph
                return graph.run(pixels)
            _log.info("a forward of %d at %s stays eager: a graph of it has no room", key.batch, key.size)
        return forward(pixels)

    def _recorded(self, forward: Callable[[Tensor], Features], pixels: Tensor) -> Graph | None:
        """The graph of a forward of such pixels; None if there is no room."""
        given = torch.empty_like(pixels).copy_(pixels)
        made, scratch = self._recorder.measured(lambda: forward(given))
        features = _like(made)
        del made
        if not self._make_room(scratch, _own_bytes(given, features)):
            return None

        def run() -> None:
            for there, rows in zip(_rows(features), _rows(forward(given)), strict=True):
                there.copy_(rows)

        return Graph(self._recorder.record(run), given, features, scratch)

    def _make_room(self, scratch: int, own: int) -> bool:
        """Whether there is room for a graph of these bytes, now that those used longest ago are dropped."""
        if CUDA.in_pages(scratch) + own > self._limit:
            return False
        for key in [key for key in self._kept if key.owner() is None]:
            del self._kept[key]
        while self._bytes(scratch, own) > self._limit:
            key, _ = self._kept.popitem(last=False)
            del self._asked[key]  # it may come often again
        return True

    def _bytes(self, scratch: int = 0, own: int = 0) -> int:
        """Bytes of those that are kept, and of one more."""
        kept = self._kept.values()
        pool = max([scratch, *(graph.scratch for graph in kept)])
        return CUDA.in_pages(pool) + own + sum(_own_bytes(graph.pixels, graph.features) for graph in kept)


def graphs_on(device: str, limit: int) -> Graphs:
    """Those of a card that may take so many bytes: the same ones whoever asks. device: as torch names it."""
    return _graphs_on(torch.device(device).index or 0, limit)


@cache
def _graphs_on(index: int, limit: int) -> Graphs:
    return Graphs(CudaRecorder(torch.device("cuda", index)), limit=limit)


def _own_bytes(pixels: Tensor, features: Features) -> int:
    """Bytes that a graph holds beside the pool."""
    return pixels.nbytes + sum(rows.nbytes for rows in _rows(features)) + _DRIVER


def _rows(features: Features) -> list[Tensor]:
    return [rows for rows in (features.tokens, features.pooled) if rows is not None]


def _like(features: Features) -> Features:
    """Room for such features."""
    tokens, pooled = features.tokens, features.pooled
    return replace(
        features,
        tokens=None if tokens is None else torch.empty_like(tokens),
        pooled=None if pooled is None else torch.empty_like(pooled),
    )
