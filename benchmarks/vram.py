"""What forwards take of a real card, beside what was predicted before they ran.

    python -m benchmarks.vram --device cuda --quick
    python -m benchmarks.vram --device cuda -o benchmarks/results/vram-l4.csv

The path is the service's own: registry.load, Encoder.encode, CudaMemory. Weights are random. Each row is on
disk as soon as it is measured, so a run that is killed keeps what it had.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
from tqdm import tqdm

from encoders.adapters.registry import blueprint, load
from encoders.contract.cost import Cost
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.errors import EncoderFailed, OutOfMemory, VisiontowerError
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.memory.device import Figures, Memory
from encoders.memory.prediction import ALLOCATOR, CUDA, MIB
from service.cli.tables import sizes_to_plan
from service.sizes import show_bytes

_RESULTS = Path(__file__).parent / "results"
_LARGE = 64 * MIB
"""What is smaller is ruled by workspaces, and matters to nobody."""
_CLOSE = 0.05


@dataclass(frozen=True)
class Grid:
    """What is measured. sizes: how many an encoder, from its native one up. free: bytes for the largest batch."""

    models: Sequence[str]
    dtypes: Sequence[str]
    sizes: int
    batches: Sequence[int]
    free: int

    @property
    def points(self) -> int:
        """Shapes, and one search for the largest batch a model and dtype."""
        return len(self.models) * len(self.dtypes) * (self.sizes * len(self.batches) + 1)


FULL = Grid(
    models=(
        "openclip:RN50@random",
        "openclip:RN101@random",
        "openclip:ViT-B-32@random",
        "openclip:ViT-L-14-336@random",
        "openclip:convnext_base_w@random",
        "openclip:ViT-B-16-SigLIP@random",
        "timm:vit_base_patch14_dinov2@random",
        "timm:vgg16@random",
    ),
    dtypes=("float32", "float16", "bfloat16"),
    sizes=3,
    batches=(1, 2, 8, 32, 128),
    free=1024 * MIB,
)
QUICK = Grid(
    models=("openclip:ViT-B-32@random", "openclip:RN50@random"),
    dtypes=("float16",),
    sizes=2,
    batches=(1, 32),
    free=256 * MIB,
)


@dataclass(frozen=True)
class Machine:
    """Where it was measured. context: bytes outside torch's allocator before the first tensor."""

    device: str
    driver: str
    torch: str
    cudnn: str
    allocator: str
    context: int


@dataclass(frozen=True)
class Forward:
    """One forward. Bytes from just before it to its highest point, weights apart; `reserved` from an empty cache on.

    run: the `first` of its shape, with an empty cache, or the `third`. outside: of the card, not torch's allocator's.
    error: why it failed, if it did.
    """

    model: str
    dtype: str
    resolution: str
    batch: int
    run: Literal["first", "third"]
    requested_predicted: int
    requested: int
    allocated_predicted: int
    allocated: int
    reserved_predicted: int
    reserved: int
    outside: int
    error: str = ""

    @property
    def ratio(self) -> float:
        """What was allocated, of what was predicted."""
        return self.allocated / self.allocated_predicted

    def __str__(self) -> str:
        return f"{self.model} {self.dtype} {self.resolution} batch {self.batch}, {self.run} run"


@dataclass(frozen=True)
class Largest:
    """The largest batch in `free` bytes: as predicted, and as it ran."""

    model: str
    dtype: str
    resolution: str
    free: int
    predicted: int
    ran: int

    def __str__(self) -> str:
        return f"{self.model} {self.dtype} {self.resolution}: {self.predicted} predicted, {self.ran} ran"


class Rows:
    """A CSV file of rows of one kind, each with the machine's columns."""

    def __init__(self, file: TextIO, kind: type[Forward] | type[Largest], machine: Machine) -> None:
        self._file = file
        self._machine = asdict(machine)
        self._writer = csv.DictWriter(file, [*self._machine, *(field.name for field in fields(kind))])
        self._writer.writeheader()

    def add(self, row: Forward | Largest) -> None:
        """Write it out, to be kept whatever happens next."""
        self._writer.writerow({**self._machine, **asdict(row)})
        self._file.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, sum up."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", ALLOCATOR)  # as the service does; before torch
    from encoders.runtime.device import resolve
    from encoders.runtime.device_memory import CudaMemory

    try:
        device = resolve(arguments.device).device
        if device == "cpu":
            raise ValueError("'cpu' has no counters to compare with: use cuda or cuda:N.")
    except ValueError as error:
        print(f"benchmarks.vram: {error}", file=sys.stderr)
        return 2
    memory = CudaMemory(device)
    machine = _machine(device, context=outside(memory.figures()))
    out = arguments.out or _RESULTS / f"vram-{re.sub('[^a-z0-9]+', '-', machine.device.lower())}.csv"
    grid = QUICK if arguments.quick else FULL
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_suffix(".batches.csv")
    measured: list[Forward | Largest] = []
    with (
        out.open("w", newline="") as file,
        beside.open("w", newline="") as other,
        tqdm(total=grid.points, unit="shape", file=sys.stderr, dynamic_ncols=True) as bar,
    ):
        forwards, largest = Rows(file, Forward, machine), Rows(other, Largest, machine)
        for row in measure(memory, grid, done=bar.update):
            (forwards if isinstance(row, Forward) else largest).add(row)
            measured.append(row)
    print(f"{machine.device}, driver {machine.driver}, torch {machine.torch}, cuDNN {machine.cudnn}: {out}, {beside}")
    print("\n".join(summary(measured, context=machine.context)))
    return 0


def measure(memory: Memory, grid: Grid, *, done: Callable[[], object]) -> Iterator[Forward | Largest]:
    """Every point of the grid that the plan says fits. done: called after each point, measured or not.

    An encoder that cannot be had or drawn up, with the libraries of this machine, is named and left out.
    """
    for model, dtype in product(grid.models, grid.dtypes):
        try:
            yield from _measure(memory, grid, model, dtype, done=done)
        except VisiontowerError as error:
            tqdm.write(f"Left out: {model} {dtype}: {error} {error.__cause__!r}", file=sys.stderr)


def _measure(
    memory: Memory, grid: Grid, model: str, dtype: str, *, done: Callable[[], object]
) -> Iterator[Forward | Largest]:
    drawn, encoder = blueprint(model, dtype=dtype), load(model, Placement(memory.device, dtype))
    outputs = drawn.spec.outputs(tokens=TokenKind.HIDDEN, pooled=True)
    sizes = sizes_to_plan(drawn.spec)[: grid.sizes]
    for size in sizes:
        cost = drawn.cost(size, outputs, device="cuda")
        for batch in grid.batches:
            memory.release()
            if batch <= memory.overhead.largest_batch(cost, memory.figures().free):
                yield from _forwards(memory, encoder, size, outputs, cost, batch=batch)
            done()
        if size is sizes[0]:
            yield _largest(memory, encoder, size, outputs, cost, free=grid.free)
            done()


def _forwards(
    memory: Memory, encoder: Encoder, size: ImageSize, outputs: Outputs, cost: Cost, *, batch: int
) -> Iterator[Forward]:
    """Three, from an empty cache on; the first and the third are told."""
    pixels = np.zeros((batch, *size, 3), np.uint8)
    reserved = memory.figures().reserved
    runs: tuple[Literal["first", "third"] | None, ...] = ("first", None, "third")
    for run in runs:
        before = _counters(memory)
        allocated, error = 0, ""
        try:
            with memory.reading() as reading:
                encoder.encode(pixels, outputs)
            allocated = reading.peak or 0
        except EncoderFailed as failure:
            error = repr(failure.__cause__)
        after = _counters(memory)
        if run is not None:
            yield Forward(
                model=encoder.spec.id,
                dtype=encoder.spec.dtype,
                resolution=str(size),
                batch=batch,
                run=run,
                requested_predicted=cost.requested(batch),
                requested=after["requested_bytes.all.peak"] - before["requested_bytes.all.current"],
                allocated_predicted=memory.overhead.allocated(cost, batch),
                allocated=allocated,
                reserved_predicted=memory.overhead.reserved(cost, batch),
                reserved=after["reserved_bytes.all.peak"] - reserved,
                outside=outside(memory.figures()),
                error=error,
            )


def _largest(memory: Memory, encoder: Encoder, size: ImageSize, outputs: Outputs, cost: Cost, *, free: int) -> Largest:
    """By trying, with torch held to what the weights reserve and `free` bytes."""

    def runs(batch: int) -> bool:
        memory.release()
        try:
            encoder.encode(np.zeros((batch, *size, 3), np.uint8), outputs)
        except OutOfMemory:
            return False
        return True

    memory.release()
    memory.limit(memory.figures().reserved + free)
    predicted = memory.overhead.largest_batch(cost, free)
    ran = largest_that_runs(runs, guess=predicted)
    memory.limit(memory.figures().total)
    return Largest(encoder.spec.id, encoder.spec.dtype, str(size), free, predicted, ran)


def largest_that_runs(runs: Callable[[int], bool], *, guess: int) -> int:
    """The largest batch that runs, given that all smaller ones do; 0 if not even one item does."""
    low, high = 0, max(1, guess)
    while runs(high):
        low, high = high, high + max(1, high // 8)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low


def outside(figures: Figures) -> int:
    """Bytes of the card that torch's allocator does not hold: context, libraries, other processes."""
    return figures.total - figures.free - figures.reserved


def summary(rows: Sequence[Forward | Largest], *, context: int) -> list[str]:
    """What the rows say of the predictions, in lines."""
    ran = [row for row in rows if isinstance(row, Forward) and not row.error]
    failed = [row for row in rows if isinstance(row, Forward) and row.error]
    largest = [row for row in rows if isinstance(row, Largest)]
    return [
        f"Context before the first tensor: {show_bytes(context)}; {show_bytes(CUDA.context)} are allowed for it.",
        *(_closeness([row for row in ran if row.run == run], run) for run in ("first", "third")),
        *_excess(ran),
        *(f"Failed: {row}: {row.error}" for row in failed),
        *(f"Largest batch in {show_bytes(row.free)}: {row}" for row in largest),
    ]


def _closeness(rows: Sequence[Forward], run: str) -> str:
    large = [row for row in rows if row.allocated_predicted >= _LARGE]
    if not large:
        return f"Allocated, {run} run: no point over {show_bytes(_LARGE)}."
    close = sum(abs(row.ratio - 1) <= _CLOSE for row in large)
    worst = max(large, key=lambda row: abs(row.ratio - 1))
    return (
        f"Allocated, {run} run: {close} of {len(large)} points over {show_bytes(_LARGE)} are within {_CLOSE:.0%}; "
        f"the worst is {worst.ratio:.3f} of what was predicted: {worst}"
    )


def _excess(rows: Sequence[Forward]) -> list[str]:
    """How much of the card was taken with nothing to hold the allocator back; how little will do, `Largest` says."""
    over = [row for row in rows if row.reserved > row.reserved_predicted]
    if not over:
        return [f"Reserved: none of {len(rows)} forwards took more than predicted."]
    worst = max(over, key=lambda row: row.reserved - row.reserved_predicted)
    excess = show_bytes(worst.reserved - worst.reserved_predicted)
    return [f"Reserved: {len(over)} of {len(rows)} forwards took more than predicted, at most {excess} more: {worst}"]


def _counters(memory: Memory) -> dict[str, int]:
    import torch

    counters: dict[str, int] = torch.cuda.memory_stats(memory.device)
    return counters


def _machine(device: str, *, context: int) -> Machine:
    import torch

    return Machine(
        device=torch.cuda.get_device_name(device),
        driver=driver(),
        torch=torch.__version__,
        cudnn=str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]  # torch does not type it
        allocator=os.environ["PYTORCH_ALLOC_CONF"],
        context=context,
    )


def driver() -> str:
    """Its version, from the tool that comes with it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.vram", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N [cuda]")
    parser.add_argument("--quick", action="store_true", help="two encoders, a few shapes: minutes")
    parser.add_argument(
        "-o", "--out", metavar="CSV", type=Path, help="[benchmarks/results/vram-DEVICE.csv]; beside it .batches.csv"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
