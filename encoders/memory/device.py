"""The memory of one device, as a planner sees it. Imports no torch; runtime/device_memory.py has the real ones."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from encoders.memory.prediction import Overhead


class Figures(NamedTuple):
    """Bytes now. total, free: of the device, whoever uses it. allocated, reserved: of this process' tensors and cache.

    What is reserved and not allocated is this process' to use, but not in `free`.
    """

    total: int
    free: int
    allocated: int
    reserved: int


@dataclass
class Reading:
    """What was measured around a forward. peak: bytes allocated for it at the highest point; None if unknown."""

    peak: int | None = None


class Memory(Protocol):
    """One device's memory. All but `figures` belongs to the threads that own the device."""

    device: str
    """As torch names it: cpu, cuda, cuda:1."""
    overhead: Overhead
    reads_freely: bool
    """Whether `reading` costs next to nothing; else it slows a forward, and is for a sample of them."""

    def figures(self) -> Figures:
        """What it holds now."""

    def reading(self) -> AbstractContextManager[Reading]:
        """Measures the forward run inside."""

    def limit(self, limit: int) -> None:
        """Let the framework refuse to reserve more than `limit` bytes for weights and forwards, where it can."""

    def release(self) -> None:
        """Give what is reserved and not allocated back to the device."""
