"""Resident size of a process that is asked for ever new sizes of an image.

    python -m benchmarks.resident
    ONEDNN_PRIMITIVE_CACHE_CAPACITY=128 python -m benchmarks.resident --sizes 480

The engine runs without HTTP. The sizes are planned first; then one image is embedded at each. Before each look, freed
memory is given back to the machine.
"""

import argparse
import asyncio
import gc
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.works import WORKS, Work
from encoders.contract.values import ImageSize
from service.engine import EmbedRequest, Engine, PlanRequest
from service.run.heap import give_back, resident_bytes
from service.settings import Settings

_STEP = 240
"""Sizes between two looks."""
_SIDES = 24
_MIB = 2**20


def sizes(number: int, *, patch: int) -> Sequence[ImageSize]:
    """Different sizes, from 2 x 2 patches on."""
    return [ImageSize(patch * (2 + index % _SIDES), patch * (2 + index // _SIDES)) for index in range(number)]


def resident_mib() -> int:
    """After what was freed has been given back."""
    gc.collect()
    give_back()
    return resident_bytes() // _MIB


async def measure(work: Work, *, number: int) -> list[tuple[str, int]]:
    """What had been done at each look, and the resident size in MiB."""
    async with Engine(Settings(model=(work.encoder_id,))) as engine:
        spec = engine.models.specs[work.encoder_id]
        picture = work.pictures[0]
        await engine.embed(EmbedRequest([picture], output="pooled"))
        looks = [("one image of native size", resident_mib())]
        asked = sizes(number, patch=spec.patch_size.height)
        for size in asked:
            await engine.plan(PlanRequest(resolutions=[size]))
        looks.append((f"{number} sizes planned", resident_mib()))
        for done, size in enumerate(asked, 1):
            await engine.embed(EmbedRequest([picture], output="pooled", resolution=size))
            if not done % _STEP or done == number:
                looks.append((f"{done} of them embedded", resident_mib()))
    return looks


def main() -> None:
    """A table of looks."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.resident", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", choices=sorted(WORKS), default="small", help="the model [small]")
    parser.add_argument("--sizes", type=int, default=2 * _STEP, help=f"that nobody asked for before [{2 * _STEP}]")
    given = parser.parse_args()
    table = Table("after", "MiB resident", "more than at first")
    looks = asyncio.run(measure(WORKS[given.work], number=given.sizes))
    for what, mib in looks:
        table.add_row(what, f"{mib:,}", f"{mib - looks[0][1]:+,}")
    Console().print(table)


if __name__ == "__main__":
    main()
