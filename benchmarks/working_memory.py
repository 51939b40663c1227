"""How much a process grows in a forward, in PyTorch and in OpenVINO, beside what PyTorch's plan says. Linux.

    python -m benchmarks.working_memory
    python -m benchmarks.working_memory --model openclip:RN50@random --batch 8,32

Each model and runtime in a process of its own: one image, then each batch. Peak: resident bytes at the highest point.
Kept: those that are left when freed memory has been given back. Both less what was resident before.
"""

import argparse
import gc
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from encoders import blueprint, load
from encoders.contract.values import Outputs
from encoders.runtime.device import resolve
from service.run.heap import give_back, resident_bytes

_MODELS = (
    "openclip:ViT-B-32@random",
    "openclip:ViT-B-16@random",
    "openclip:RN50@random",
    "openclip:convnext_base_w@random",
    "timm:vit_small_patch14_dinov2@random",
)
_POOLED = Outputs(pooled=True)
_MB = 1e6


def measure(model: str, runtime: str, batches: Sequence[int]) -> list[tuple[float, float, float]]:
    """For each batch MB of the plan, of the peak, and kept."""
    encoder = load(model, resolve("cpu", runtime=runtime))
    size = encoder.spec.image_size
    plan = blueprint(model, dtype=encoder.spec.dtype).cost(size, _POOLED, device="cpu").requested
    encoder.encode(np.zeros((1, *size, 3), np.uint8), _POOLED)
    found = []
    for batch in batches:
        pixels = np.zeros((batch, *size, 3), np.uint8)
        before = _resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
        encoder.encode(pixels, _POOLED)
        peak = _peak()
        found.append((plan(batch) / _MB, (peak - before) / _MB, (_resident() - before) / _MB))
    return found


def _resident() -> int:
    gc.collect()
    give_back()
    return resident_bytes()


def _peak() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser("python -m benchmarks.working_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=_MODELS, metavar="ID", help="[five kinds]")
    parser.add_argument("--batch", type=lambda text: [int(each) for each in text.split(",")], default=[8, 16, 32])
    given = parser.parse_args()
    shown = Table(box=None, pad_edge=False)
    for column in ("model", "runtime", "batch", "plan MB", "peak MB", "of the plan", "kept MB"):
        shown.add_column(column, justify="left" if column in ("model", "runtime") else "right")
    for model in given.model:
        for runtime in ("torch", "openvino"):
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                rows = alone.apply(measure, (model, runtime, given.batch))
            for batch, (plan, peak, kept) in zip(given.batch, rows, strict=True):
                facts = (f"{plan:.0f}", f"{peak:.0f}", f"{peak / plan:.1f}", f"{kept:.0f}")
                shown.add_row(model, runtime, str(batch), *facts)
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
