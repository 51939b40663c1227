"""What labels and texts cost beside an image, over HTTP: the first time, and once they are known.

    python -m benchmarks.texts --work vit-b-32 --rounds 200

One server, one caller. In each round every kind of request comes once, in random order, so that a slow moment meets
all of them.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.http1 import Address, Answer, Connection, post
from benchmarks.load import Target
from benchmarks.servers import OURS, running
from benchmarks.works import WORKS, Work
from service.engine.templates import OPENAI

_WARMUP = 5
_TEXTS = 100
_PAUSE_S = 1.0
IMAGE = "/embed, one image, pooled"


@dataclass(frozen=True)
class First:
    """The first request for a set. refusals: answers that said that its labels are not ready."""

    seconds: float
    refusals: int


@dataclass(frozen=True)
class Texts:
    """milliseconds: of every request, by kind. first: see there. labels, templates: of the set."""

    work: str
    labels: int
    templates: int
    first: First
    milliseconds: Mapping[str, Sequence[float]]

    def table(self) -> Table:
        """A kind of request a row; medians, and by how much the median is more than an image's alone."""
        shown = Table("request", "p50 ms", "p95 ms", "beside an image ms", title=f"{self.work}, one caller")
        about = f"/classify, {self.labels:,} labels x {self.templates} templates"
        shown.add_row(f"{about}, the first ({self.first.refusals} x 503)", f"{1000 * self.first.seconds:,.0f}", "", "")
        image = float(np.median(self.milliseconds[IMAGE]))
        for kind, samples in self.milliseconds.items():
            p50, p95 = np.percentile(samples, (50, 95))
            shown.add_row(kind, f"{p50:.2f}", f"{p95:.2f}", f"{p50 - image:+.2f}")
        return shown


def measure(work: Work, *, labels: int, rounds: int, flags: Sequence[str] = ()) -> Texts:
    """Starts a server for it. Raises RuntimeError if an answer was not as it should be."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "labels.txt"
        file.write_text("\n".join(f"kind of thing {number}" for number in range(labels)))
        with running(OURS, work, flags=[*flags, "--labels", f"things={file}"]) as target:
            return asyncio.run(_measured(work, target, labels=labels, rounds=rounds))


async def _measured(work: Work, target: Target, *, labels: int, rounds: int) -> Texts:
    connection = await Connection.open(target.address)
    jpeg = work.pictures[0]
    address = target.address
    by_name = post(address, "/classify?labels=things&template=openai", jpeg, content_type="image/jpeg")
    known = [f"a known text, {number}" for number in range(_TEXTS)]
    listed = "&".join(f"label=kind%20{number}" for number in range(10))
    kinds: dict[str, Callable[[int], bytes]] = {
        IMAGE: lambda round: target.requests[0],
        f"/classify, {labels:,} labels x {len(OPENAI)} templates, later": lambda round: by_name,
        "/classify, 10 labels in the request, known": lambda round: post(
            address, f"/classify?{listed}", jpeg, content_type="image/jpeg"
        ),
        f"/embed, {_TEXTS} texts, known": lambda round: _of_texts(address, known),
        f"/embed, {_TEXTS} texts, new": lambda round: _of_texts(
            address, [f"a new text of round {round}, {number}" for number in range(_TEXTS)]
        ),
    }
    rng = np.random.default_rng(0)
    try:
        first = await _first(connection, by_name)
        milliseconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for round in range(_WARMUP + rounds):
            for kind in rng.permutation(list(kinds)).tolist():  # none is always behind the same one
                request = kinds[kind](round)
                started = time.perf_counter()
                answer = await connection.ask(request)
                took = time.perf_counter() - started
                _require(answer, 200)
                if round >= _WARMUP:
                    milliseconds[kind].append(1000 * took)
    finally:
        connection.close()
    return Texts(work.name, labels, len(OPENAI), first, milliseconds)


def _of_texts(address: Address, texts: Sequence[str]) -> bytes:
    body = orjson.dumps({"texts": texts, "encoding_format": "base64"})
    return post(address, "/embed", body, content_type="application/json")


async def _first(connection: Connection, request: bytes) -> First:
    """Until it is answered, with a pause after each refusal."""
    started = time.perf_counter()
    refusals = 0
    while (answer := await connection.ask(request)).status == 503:
        refusals += 1
        await asyncio.sleep(_PAUSE_S)
    _require(answer, 200)
    return First(time.perf_counter() - started, refusals)


def _require(answer: Answer, status: int) -> None:
    if answer.status != status:
        raise RuntimeError(f"{answer.status}: {answer.body[:500].decode(errors='replace')}")


def main() -> None:
    """Start, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=sorted(WORKS), default="small", help="the model [small]")
    parser.add_argument("--labels", type=int, default=1000, help="in the set [1000]")
    parser.add_argument("--rounds", type=int, default=100, help="requests of each kind [100]")
    parser.add_argument("flags", nargs="*", help="of the server, behind --")
    arguments = parser.parse_args()
    work = WORKS[arguments.work]
    Console().print(measure(work, labels=arguments.labels, rounds=arguments.rounds, flags=arguments.flags).table())


if __name__ == "__main__":
    main()
