"""How busy our own client keeps a server, beside the bench's load generator: the same server, in turn, one process.

    python -m benchmarks.client --work small
    python -m benchmarks.client --work vit-b-32,small --seconds 20 --rounds 3

The generator has 32 callers that send one image each; the client sends `--batch` images a request, and has
`--in-flight` requests under way. Every vector is held against open_clip's own. Run it on an idle machine.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.load import Target, Usage, closed_loop, wrong
from benchmarks.servers import running
from benchmarks.works import RIGHT, WORKS, Work
from visiontower_client import AsyncClient

_CALLERS = 32


@dataclass(frozen=True)
class Measured:
    """One window. cores: of the server; own_cores: of the process that asks. wrong: vectors of another picture."""

    images_per_s: float
    cores: float
    own_cores: float
    wrong: int


def generator(target: Target, *, seconds: float, warmup_s: float) -> Measured:
    """The bench's load generator."""
    window = asyncio.run(closed_loop(target, concurrency=_CALLERS, seconds=seconds, warmup_s=warmup_s))
    bad = wrong(window.answered, target) + len(window.samples) - len(window.answered) + window.lost
    return Measured(window.images_per_s, window.cores, window.client_cores, bad)


def client(
    target: Target, pictures: Sequence[bytes], *, batch: int, in_flight: int, seconds: float, warmup_s: float
) -> Measured:
    """Our own client: one call of embed_iter that never waits for its images."""
    return asyncio.run(_client(target, pictures, batch, in_flight, seconds=seconds, warmup_s=warmup_s))


async def _client(
    target: Target, pictures: Sequence[bytes], batch: int, in_flight: int, *, seconds: float, warmup_s: float
) -> Measured:
    opens = time.monotonic() + warmup_s
    ends = opens + seconds

    async def endless() -> AsyncIterator[bytes]:
        while time.monotonic() < ends:
            for picture in pictures:
                yield picture

    address = f"http://{target.address.host}:{target.address.port}"
    found: list[tuple[int, np.ndarray]] = []
    before: tuple[Usage, float, float, int] | None = None
    after = before
    async with AsyncClient(address, in_flight=in_flight) as own:
        async for item in own.embed_iter(endless(), batch=batch, ordered=False, normalize=True):
            assert item.pooled is not None
            found.append((item.index, item.pooled))
            now = time.monotonic()
            if before is None and now >= opens:
                before = (Usage.of(target.pid), time.process_time(), now, len(found))
            if after is None and now >= ends:
                after = (Usage.of(target.pid), time.process_time(), now, len(found))
    if before is None or after is None:
        raise RuntimeError("No answer came within the window: make it longer.")
    took = after[2] - before[2]
    cosines = (float(vector @ target.references[index % len(pictures)]) for index, vector in found)
    return Measured(
        (after[3] - before[3]) / took,
        (after[0].cpu_s - before[0].cpu_s) / took,
        (after[1] - before[1]) / took,
        sum(cosine < RIGHT for cosine in cosines),
    )


def measure(
    work: Work, *, batches: Sequence[int], in_flight: int, seconds: float, warmup_s: float, rounds: int
) -> Table:
    """Medians of the rounds, each in the other order."""
    asked = {
        f"client, {batch} a request": partial(client, pictures=work.pictures, batch=batch, in_flight=in_flight)
        for batch in batches
    }
    names = ["load generator", *asked]
    results: dict[str, list[Measured]] = {name: [] for name in names}
    with running("visiontower", work) as target:
        for round in range(rounds):
            for name in names if round % 2 == 0 else names[::-1]:
                ask = asked.get(name, generator)
                results[name].append(ask(target, seconds=seconds, warmup_s=warmup_s))
    return _table(work, results)


def _table(work: Work, results: dict[str, list[Measured]]) -> Table:
    table = Table(title=f"{work.name}: images a second from one process")
    for heading in ("asked by", "images/s", "of the generator's", "server's cores", "own cores", "wrong"):
        table.add_column(heading, justify="left" if heading == "asked by" else "right")
    theirs = median(each.images_per_s for each in results["load generator"])
    for name, windows in results.items():
        rate = median(each.images_per_s for each in windows)
        table.add_row(
            name,
            f"{rate:.4g}",
            f"{100 * rate / theirs:.0f} %",
            f"{median(each.cores for each in windows):.2f}",
            f"{median(each.own_cores for each in windows):.2f}",
            str(sum(each.wrong for each in windows)),
        )
    return table


def main() -> None:
    """A table for each work."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.client", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", default="small", help=f"of {', '.join(WORKS)}, with commas [small]")
    parser.add_argument("--batch", default="1,16", help="images in a request of the client [1,16]")
    parser.add_argument("--in-flight", type=int, default=8, help="requests of the client at once [8]")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each window [12]")
    parser.add_argument("--warmup", type=float, default=4.0, help="seconds before each [4]")
    parser.add_argument("--rounds", type=int, default=2, help="[2]")
    a = parser.parse_args()
    for name in a.work.split(","):
        if name not in WORKS:
            parser.error(f"there is no work {name}")
        table = measure(
            WORKS[name],
            batches=[int(number) for number in a.batch.split(",")],
            in_flight=a.in_flight,
            seconds=a.seconds,
            warmup_s=a.warmup,
            rounds=a.rounds,
        )
        Console().print(table)


if __name__ == "__main__":
    main()
