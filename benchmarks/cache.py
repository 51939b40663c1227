"""What the result cache costs where nothing repeats, and what it gives where everything does. In one process, no HTTP.

    python -m benchmarks.cache
    python -m benchmarks.cache --model fake:vit --output tokens --rounds 9
    python -m benchmarks.cache --model openclip:ViT-B-32@random --seconds 10

  off          no cache
  new          a cache in memory, and every picture is another
  kept         a cache in memory, and every picture has been asked for
  new, disk    as new, with a cache on disk behind it
  kept, disk   every row is read from disk

Photographs of about 640x480, JPEG, so many callers that each wait for their answer. They are made another by eight
bytes behind the picture, which decoders do not read. The ways take turns, round after round; a way's figures are the
medians, and the last column compares them with `off`. fake:vit computes next to nothing: what is left is the service
and the decode. Processor time is disturbed little by other programs; images a second need an idle machine.
"""

import argparse
import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.images import PHOTOGRAPHS, pictures
from benchmarks.works import FOLDER
from encoders.adapters.fake import FakeEncoder, FakeMemory
from encoders.contract.encoder import Encoder
from service.engine.backend import Backend
from service.engine.engine import Engine
from service.engine.values import EmbedRequest, Output
from service.settings import Settings
from service.sizes import parse_bytes

_CALLERS = 16
_IN_MEMORY = parse_bytes("4GiB")
_BARELY = 1
"""Bytes in memory for no row at all, so that every one comes from disk."""


@dataclass(frozen=True)
class Way:
    """cache: bytes in memory. is_new: no picture comes twice."""

    name: str
    cache: int
    is_new: bool
    has_disk: bool = False


WAYS = (
    Way("off", 0, is_new=True),
    Way("new", _IN_MEMORY, is_new=True),
    Way("kept", _IN_MEMORY, is_new=False),
    Way("new, disk", _IN_MEMORY, is_new=True, has_disk=True),
    Way("kept, disk", _BARELY, is_new=False, has_disk=True),
)


@dataclass(frozen=True)
class Pace:
    """Of one round: images a second, and milliseconds of processor time an image."""

    images_per_s: float
    cpu_ms: float


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:vit", help="an encoder's id, or fake:vit [%(default)s]")
    parser.add_argument("--output", default="pooled", choices=["pooled", "tokens"], help="of a request [%(default)s]")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a way in a round [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="in which all ways take turns [%(default)s]")
    arguments = parser.parse_args()
    paces = asyncio.run(measured(arguments.model, arguments.output, arguments.seconds, arguments.rounds))
    Console().print(table(paces, f"{arguments.model}, {arguments.output}, {_CALLERS} callers"))


async def measured(model: str, output: Output, seconds: float, rounds: int) -> dict[Way, list[Pace]]:
    """A pace a round of each way."""
    photographs = pictures(PHOTOGRAPHS, FOLDER / "images")
    numbers = itertools.count()
    paces: dict[Way, list[Pace]] = defaultdict(list)
    for round in tqdm(range(rounds), unit="round"):
        for way in WAYS if round % 2 else WAYS[::-1]:
            with TemporaryDirectory() as folder:
                disk = str(Path(folder) / "cache") if way.has_disk else None
                settings = Settings(model=(model,), cache=way.cache, cache_dir=disk)
                async with Engine(settings, backend=_fake() if model.startswith("fake:") else None) as engine:
                    if way.has_disk and not way.is_new:
                        await _all(engine, output, photographs)
                    paces[way].append(await _pace(engine, output, photographs, way, seconds, numbers))
    return paces


async def _pace(
    engine: Engine, output: Output, photographs: list[bytes], way: Way, seconds: float, numbers: Iterator[int]
) -> Pace:
    await _all(engine, output, photographs)  # warm, and kept
    answered = 0
    started, cpu = time.monotonic(), time.process_time()

    async def call() -> None:
        nonlocal answered
        while time.monotonic() < started + seconds:
            number = next(numbers)
            picture = photographs[number % len(photographs)]
            source = picture + number.to_bytes(8, "big") if way.is_new else picture
            await engine.embed(EmbedRequest([source], output=output))
            answered += 1

    await asyncio.gather(*(call() for _ in range(_CALLERS)))
    return Pace(answered / (time.monotonic() - started), 1000 * (time.process_time() - cpu) / answered)


async def _all(engine: Engine, output: Output, photographs: list[bytes]) -> None:
    for photograph in photographs:
        await engine.embed(EmbedRequest([photograph], output=output))


def _fake() -> Backend:
    encoder: Encoder = FakeEncoder()
    blueprint = FakeEncoder().blueprint
    return Backend(load=lambda _: encoder, blueprint=lambda *_: blueprint, memory=lambda: FakeMemory(2**40))


def table(paces: dict[Way, list[Pace]], title: str) -> Table:
    """A row a way: medians, and the processor time beside that of `off`."""
    found = Table(title=title)
    for name in ("way", "images/s", "CPU ms/image", "CPU beside off"):
        found.add_column(name, justify="left" if name == "way" else "right")
    off = median(pace.cpu_ms for pace in paces[WAYS[0]])
    for way in WAYS:
        cpu_ms = median(pace.cpu_ms for pace in paces[way])
        images_per_s = median(pace.images_per_s for pace in paces[way])
        found.add_row(way.name, f"{images_per_s:,.0f}", f"{cpu_ms:.3f}", f"{cpu_ms / off - 1:+.1%}")
    return found


if __name__ == "__main__":
    main()
