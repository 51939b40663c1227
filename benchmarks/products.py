"""The products of a vision transformer on this CPU: attention by torch and by us, linear layers in 16 and 8 bits.

    python -m benchmarks.products
    python -m benchmarks.products --threads 1

Milliseconds of one call, medians of calls in turn. Values are random; rows are what a batch of 8 images gives.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from encoders.memory.machine import available_cores
from encoders.runtime.attention import by_products
from encoders.runtime.device import has_int8
from encoders.runtime.int8 import Int8Linear, Steps
from encoders.runtime.packed_linear import PackedLinear, is_packable

_CALLS = 40
_IMAGES = 8
_ATTENTION = {
    "ViT-B/32 at 224": (12, 50, 64),
    "ViT-B/16 at 224": (12, 197, 64),
    "ViT-L/14 at 224": (16, 257, 64),
    "DINOv2 S/14 at 518": (6, 1370, 64),
}
"""Heads, tokens, width of a head."""
_LINEAR = {"768 to 3072, 50 tokens": (50, 768, 3072), "3072 to 768, 50 tokens": (50, 3072, 768)}
"""Tokens, width in, width out."""


class Pair(NamedTuple):
    """One product in two ways."""

    product: str
    ways: tuple[str, str]
    milliseconds: tuple[float, float]


def attention() -> Iterator[Pair]:
    """Torch's kernel and products, in bfloat16."""
    for name, (heads, tokens, width) in _ATTENTION.items():
        query, key, value = (torch.randn(_IMAGES, heads, tokens, width).bfloat16() for _ in range(3))
        torchs = partial(F.scaled_dot_product_attention, query, key, value)
        ours = partial(by_products, query.clone(), key, value)  # which it writes over
        yield _timed(f"attention, {name}", ("torch's kernel", "products"), torchs, ours)


def linear() -> Iterator[Pair]:
    """Packed bfloat16, and int8 from bfloat16: quantizing what comes in is a part of it."""
    for name, (tokens, given, made) in _LINEAR.items():
        x = torch.randn(_IMAGES, tokens, given).bfloat16()
        weight, bias = torch.randn(made, given), torch.randn(made)
        packed = PackedLinear(weight.bfloat16(), bias.bfloat16())
        coarse = Int8Linear(weight, bias, Steps(scale=0.03), dtype=torch.bfloat16)
        yield _timed(f"linear, {name}", ("bfloat16", "int8"), partial(packed, x), partial(coarse, x))


def _timed(product: str, ways: tuple[str, str], *calls: Callable[[], Tensor]) -> Pair:
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(_CALLS):
        for found, call in zip(taken, calls, strict=True):
            started = time.perf_counter()
            call()
            found.append(1000 * (time.perf_counter() - started))
    return Pair(product, ways, (median(taken[0]), median(taken[1])))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser("python -m benchmarks.products", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=available_cores(), help="[all cores]")
    torch.set_num_threads(parser.parse_args().threads)
    if not (is_packable(torch.bfloat16) and has_int8()):
        parser.exit(1, "This CPU has no products in bfloat16 and int8.\n")
    shown = Table(box=None, pad_edge=False)
    for column in ("product", "one way", "ms", "another", "ms", "times as fast"):
        shown.add_column(column, justify="left" if column in ("product", "one way", "another") else "right")
    with torch.inference_mode():
        for pair in (*attention(), *linear()):
            (one, other), (slow, fast) = pair.ways, pair.milliseconds
            shown.add_row(pair.product, one, f"{slow:.3g}", other, f"{fast:.3g}", f"{slow / fast:.2f}")
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
