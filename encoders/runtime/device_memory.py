"""The memory of a CPU and of a CUDA card, as torch and the system count it."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import psutil
import torch

from encoders.memory.device import Figures, Memory, Reading
from encoders.memory.machine import host_memory
from encoders.memory.prediction import CPU, CUDA, Overhead
from encoders.runtime.cuda_graphs import graphs_on
from encoders.runtime.trace import Trace


def memory_of(device: str, *, graph_bytes: int = 0) -> Memory:
    """The memory of a device that `resolve` gave. graph_bytes: as Placement's."""
    return CudaMemory(device, graph_bytes=graph_bytes) if torch.device(device).type == "cuda" else HostMemory()


def card_bytes() -> int:
    """Bytes of the first card that this process sees, whoever uses them. Raises ValueError if there is none."""
    if not torch.cuda.is_available():
        raise ValueError("a card is needed, and torch sees no CUDA device.")
    return int(torch.cuda.get_device_properties(0).total_memory)


class HostMemory:
    """A CPU's: the machine's, or the container's where it has less. Forwards are measured by counting their tensors."""

    device = "cpu"
    overhead = CPU
    reads_freely = False

    def __init__(self) -> None:
        self._process = psutil.Process()

    def figures(self) -> Figures:
        """As Memory.figures; what is reserved is the process' resident set, of which torch does not say its part."""
        total, free = host_memory()
        resident = self._process.memory_info().rss
        return Figures(total=total, free=free, allocated=resident, reserved=resident)

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """As Memory.reading."""
        reading = Reading()
        with Trace() as trace:
            yield reading
        reading.peak = trace.peak or None  # none if another runtime ran it, whose memory torch does not see

    def limit(self, limit: int) -> None:
        """There is no such limit in torch for CPUs."""

    def release(self) -> None:
        """The C library's affair."""


class CudaMemory:
    """A card's, as torch's caching allocator counts it. Making one starts CUDA and cuBLAS on the device.

    graph_bytes: set aside for CUDA graphs.
    """

    reads_freely = True

    def __init__(self, device: str, *, graph_bytes: int = 0) -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch does not type it
        self._device = torch.device("cuda", torch.device(device).index or 0)
        self.device = str(self._device)
        with ThreadPoolExecutor(1) as thread:  # one that ends: cuBLAS's handle, and what it keeps, go to the next
            workspace, self._kept = thread.submit(_workspace, self._device).result()
        free, total = torch.cuda.mem_get_info(self._device)
        self.overhead: Overhead = replace(
            CUDA,
            context=min(CUDA.context, total - free) + graph_bytes,  # all that is taken so far, by whomever, bounds it
            graphs=graph_bytes,
            workspace=workspace,
        )
        self._graphs = graphs_on(self.device, graph_bytes) if graph_bytes else None

    def figures(self) -> Figures:
        """As Memory.figures; what cuBLAS keeps of torch's memory is the context's."""
        free, total = torch.cuda.mem_get_info(self._device)
        return Figures(
            total=total,
            free=free,
            allocated=torch.cuda.memory_allocated(self._device) - self._kept,
            reserved=torch.cuda.memory_reserved(self._device) - self._kept,
        )

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """As Memory.reading. Nothing is known of a forward that was a graph's: its memory is set aside."""
        reading, graphs = Reading(), self._graphs
        recorded = graphs.forwards if graphs else 0
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        yield reading
        if graphs is None or graphs.forwards == recorded:
            reading.peak = torch.cuda.max_memory_allocated(self._device) - before

    def limit(self, limit: int) -> None:
        """As Memory.limit; graphs have theirs beside it."""
        total, most = torch.cuda.mem_get_info(self._device)[1], limit + self.overhead.graphs + self._kept
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, most / total)), self._device)

    def release(self) -> None:
        """As Memory.release. Cycles go first: they may hold tensors."""
        gc.collect()
        torch.cuda.empty_cache()


def _workspace(device: torch.device) -> tuple[int, int]:
    """Bytes of torch's memory that cuBLAS takes for the length of a matrix product, and those that it keeps.

    Torch is asked, by a product without and one with a bias. It depends on the card (8.125 MiB, or 32 on Hopper and,
    with torch 2.15, on Blackwell) and on the release: before 2.15 all is kept for good, once for every thread that
    multiplies, and a product with a bias has one of its own.
    """
    before = torch.cuda.memory_allocated(device)
    factor, product = torch.ones(2, 16, 16, dtype=torch.float16, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    torch.mm(factor, factor, out=product)
    torch.addmm(factor[0], factor, factor, out=product)
    peak, after = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    del factor, product
    kept = torch.cuda.memory_allocated(device) - before
    torch.cuda.empty_cache()
    return peak - after, kept
