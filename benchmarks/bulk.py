"""`visiontower embed` of a folder of JPEGs beside the limit of the machine, in turn, on the same pictures.

    python -m benchmarks.bulk --work vit-b-32,small --seconds 20 --rounds 3
    python -m benchmarks.bulk --work small --flags '--ray local --engines 2'

The command's own code runs, in a process of its own, into a folder of shards. Its pace is that from the first batch to
the last: what the start takes is not in it. Run it on an idle machine.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.serve import names
from benchmarks.works import FOLDER, WORKS, Work

_RUNTIME = "eager-bfloat16"


@contextmanager
def folder_of(work: Work, *, count: int) -> Iterator[Path]:
    """That many names of the work's pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        kept, named = Path(folder, "kept"), Path(folder, "named")
        kept.mkdir()
        named.mkdir()
        for index, jpeg in enumerate(work.pictures):
            (kept / f"{index}.jpg").write_bytes(jpeg)
        for index in range(count):
            os.link(kept / f"{index % len(work.pictures)}.jpg", named / f"{index:08}.jpg")
        yield named


def embed(words: list[str]) -> float:
    """Images a second of the command with these words, in this process."""
    from service.bulk.embedding import EngineEmbedder
    from service.bulk.run import Job, Progress, run
    from service.cli import cluster
    from service.cli.embed import engine_settings, job_of
    from service.cli.main import parser
    from service.engine.engine import Engine
    from service.run import interpreter
    from service.settings import Settings

    arguments = parser().parse_args(["embed", *words])
    job = job_of(arguments)
    settings = engine_settings(arguments, job)
    marks: list[tuple[float, int]] = []

    def mark(progress: Progress) -> None:
        marks.append((time.perf_counter(), progress.done))

    async def here(job: Job, settings: Settings) -> None:
        async with Engine(settings) as engine:
            interpreter.loaded()
            await run(job, EngineEmbedder(engine), progress=mark)

    if arguments.ray is None:
        asyncio.run(here(job, settings))
    else:
        with cluster.cluster_of(arguments, settings) as embedder:
            asyncio.run(run(job, embedder, progress=mark))
    (began, first), (ended, last) = marks[1], marks[-1]
    return (last - first) / (ended - began)


def limit(work: Work, *, seconds: float, plan: str) -> tuple[float, str]:
    """Images a second, and the flags that found it."""
    line = [sys.executable, "-m", "benchmarks.limit", "--work", work.name, "--runtime", _RUNTIME]
    done = subprocess.run(
        [*line, "--seconds", str(seconds), *plan.split()], stdout=subprocess.PIPE, text=True, check=True
    )
    reached = json.loads(done.stdout.splitlines()[-1])
    return reached["images_per_s"], f"--decoder {reached['decoder']} --plan {reached['plan']}"


def measure(work: Work, *, seconds: float, rounds: int, flags: list[str]) -> str:
    """A line: medians, and the ratio of each round."""
    _ = work.references
    found: list[tuple[float, float]] = []
    best, plan = limit(work, seconds=seconds, plan="")
    with folder_of(work, count=int(best * seconds)) as folder:
        for round in range(rounds):
            out = folder.parent / "out"
            words = [str(folder), "-o", f"{out}/", "--model", work.encoder_id, "--dtype", "float16", *flags]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.bulk", "--one", *words],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            shutil.rmtree(out)
            found.append((float(done.stdout.splitlines()[-1]), limit(work, seconds=seconds, plan=plan)[0]))
            print(f"{work.name} round {round + 1}: {found[-1][0]:.1f} of {found[-1][1]:.1f} images/s", flush=True)
    ratios = [bulk / most for bulk, most in found]
    return (
        f"{work.name}{' ' if flags else ''}{' '.join(flags)}: {median(bulk for bulk, _ in found):.1f} images/s, limit "
        f"{median(most for _, most in found):.1f}, {median(ratios):.1%} ({min(ratios):.1%} to {max(ratios):.1%})"
    )


def main() -> None:
    """A line for each work."""
    if sys.argv[1:2] == ["--one"]:
        print(embed(sys.argv[2:]))
        return
    parser = argparse.ArgumentParser("python -m benchmarks.bulk", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=names(WORKS), default=["vit-b-32", "small"], help="[vit-b-32,small]")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run, about [20]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("--flags", type=str.split, default=[], help="of embed, such as '--batch-size 64'")
    a = parser.parse_args()
    for work in a.work:
        print(measure(WORKS[work], seconds=a.seconds, rounds=a.rounds, flags=a.flags))


if __name__ == "__main__":
    main()
