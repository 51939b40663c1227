"""What a card can do by itself: its peak, measured and by its datasheet, its uploads, and how its time is taken."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeAlias

import torch
from torch import Tensor

from benchmarks.report import machine
from benchmarks.vram import driver
from encoders.contract.encoder import Placement
from service.scaling.cards import CARDS

_FEW = 3
_MOST = 2000
"""Runs of one measurement, however short they are: each has an event of its own."""

Run: TypeAlias = Callable[[], object]

DATASHEET = {
    r"\bH200 NVL\b": "h200-nvl",
    r"\bG?H200\b": "h200",
    r"\bH100 NVL\b": "h100-nvl",
    r"\bH100 PCIe\b": "h100-pcie",
    r"\bH100\b": "h100",
    r"\bA100\b": "a100-80",
    r"\bL40S\b": "l40s",
    r"\bL40\b": "l40",
    r"\bA30\b": "a30",
    r"\bA10\b": "a10",
    r"\bL4\b": "l4",
}
"""Our name of a card by torch's; the first that fits."""


@dataclass(frozen=True)
class Card:
    """Where it was measured: the columns that every row has in the CSV. Peaks are dense TFLOP/s in `dtype`.

    peak: of a large matrix product in this run. datasheet: None where it is not known.
    """

    commit: str
    torch: str
    cpu: str
    cpus: int
    device: str
    driver: str
    cudnn: str
    dtype: str
    peak: float
    datasheet: float | None

    @classmethod
    def of(cls, placement: Placement, *, seconds: float) -> "Card":
        """The device of this placement; its peak takes a few times `seconds`."""
        on_card = torch.device(placement.device).type == "cuda"
        device = torch.cuda.get_device_name(placement.device) if on_card else "cpu"
        return cls(
            **machine(),
            device=device,
            driver=driver() if on_card else "",
            cudnn=str(torch.backends.cudnn.version()) if on_card else "",  # type: ignore[no-untyped-call]
            dtype=placement.dtype,
            peak=peak(placement, sides=(4096, 8192, 16384) if on_card else (1024,), seconds=seconds),
            datasheet=datasheet(device, placement.dtype),
        )


def datasheet(device: str, dtype: str) -> float | None:
    """Dense TFLOP/s of a card by torch's name of it; None where it is not known, as for a part of a card (MIG)."""
    if dtype == "float32" or " MIG " in device:
        return None
    return next((CARDS[name].tflops for theirs, name in DATASHEET.items() if re.search(theirs, device)), None)


def peak(placement: Placement, *, sides: Sequence[int], seconds: float) -> float:
    """TFLOP/s of the fastest product of two square matrices: 2 x side^3 of normal values, for zeros run cooler."""

    def rate(side: int) -> float:
        left, right = (
            torch.randn(side, side, device=placement.device, dtype=getattr(torch, placement.dtype)) for _ in range(2)
        )
        out = torch.empty_like(left)
        spent = median_seconds(lambda: torch.mm(left, right, out=out), device=placement.device, seconds=seconds)
        return 2 * side**3 / spent / 1e12

    return max(map(rate, sides))


def median_seconds(run: Run, *, device: str, seconds: float) -> float:
    """Of one run among as many as fill about `seconds`, back to back, after a warm-up of a quarter of that.

    How many is settled before they start: the host runs ahead of a card, so a loop that looks at the clock would queue
    far more than it has time for.
    """
    times = _times_on_card if torch.device(device).type == "cuda" else _times_on_host
    times(run, _FEW)
    number = max(_FEW, min(_MOST, round(seconds / median(times(run, _FEW)))))
    times(run, number // 4)
    return median(times(run, number))


def _times_on_card(run: Run, number: int) -> list[float]:
    """Seconds from the end of each run to the end of the next, on the current device; returns when all have ended."""
    marks = [
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch does not type it
        for _ in range(number + 1)
    ]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def _times_on_host(run: Run, number: int) -> list[float]:
    marks = [time.perf_counter()]
    for _ in range(number):
        run()
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


@dataclass(frozen=True)
class Upload:
    """Images of 224 x 224 from the host to the card, uint8, by themselves. host: pageable or pinned memory."""

    host: str
    batch: int
    images_per_s: float
    gb_per_s: float


def uploads(device: str, *, batch: int, seconds: float) -> list[Upload]:
    """From each kind of memory; of a CPU, nothing. Random bytes: pages of zeros could all be the same one."""
    if torch.device(device).type != "cuda":
        return []
    pageable = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8)
    there = torch.empty_like(pageable, device=device)

    def upload(name: str, host: Tensor) -> Upload:
        spent = median_seconds(lambda: there.copy_(host, non_blocking=True), device=device, seconds=seconds)
        return Upload(name, batch, batch / spent, host.nbytes / spent / 1e9)

    return [upload("pageable", pageable), upload("pinned", pageable.pin_memory())]
