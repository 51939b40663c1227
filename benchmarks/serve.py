"""The bench: servers against each other and against the limit of the machine, in turn, on the same pictures.

    python -m benchmarks.peers                                  # once: the peers' environments
    python -m benchmarks.serve --quick
    python -m benchmarks.serve --work vit-b-32,small,12mp --against limit,visiontower,fastapi --seconds 20 --rounds 3
    python -m benchmarks.serve --work rn50,convnext,siglip-b-16 --against limit,limit@openvino-bfloat16,visiontower
    python -m benchmarks.serve --work vit-b-32 --against visiontower,visiontower-hf,visiontower-timm   # equal weights
    python -m benchmarks.serve --work small,vit-b-32 --against visiontower,visiontower-ray   # what Ray's proxy costs
    python -m benchmarks.serve --curve --work vit-b-32 --plot curve.svg
    python -m benchmarks.serve --idle | --tokens | --mixed | --start | --fidelity | --soak 100000

A server is named NAME or NAME@DTYPE, a limit `limit` or limit@RUNTIME. Run it on an idle machine.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from tqdm import tqdm

from benchmarks import peers, report
from benchmarks.load import Target, closed_loop
from benchmarks.report import LIMIT, Results, Row, Setting
from benchmarks.schemes import NotServed
from benchmarks.servers import FLAGS, SERVERS, running
from benchmarks.works import FOLDER, WORKS, Work

_RUNTIME = "eager-bfloat16"
_WIDTH = 150
_LOADS = "0.2,0.4,0.6,0.8,0.9,1"
_LIMITS = [LIMIT, f"{LIMIT}@openvino-bfloat16"]
_QUICK = {"work": ["vit-b-32", "small"], "against": [*_LIMITS, *FLAGS, "fastapi"], "seconds": 8.0, "rounds": 1}


@dataclass
class Bench:
    """A comparison. plans: of each limit, once it has been searched for. failures: who did not come up, and why."""

    works: Sequence[Work]
    against: Sequence[str]
    concurrency: Sequence[int]
    seconds: float
    warmup_s: float
    rounds: int
    flags: Sequence[str]
    results: Results
    plans: dict[tuple[str, str], str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Round after round, each in the other order: what a machine does over time must not favour anybody."""
        for work in self.works:
            _ = work.references  # made now, not while something runs
            for round in range(1, self.rounds + 1):
                for name in self.against if round % 2 else self.against[::-1]:
                    try:
                        for row in self._rows(work, name, round):
                            self.results.add(row)
                            say(row)
                    except NotServed as error:
                        print(f"{work.name} round {round} {name}: {error}", file=sys.stderr, flush=True)
                    except (RuntimeError, subprocess.CalledProcessError) as error:
                        self.failures.append(f"{work.name} round {round} {name}: {error}")
                        print(self.failures[-1], file=sys.stderr, flush=True)

    def _rows(self, work: Work, name: str, round: int) -> Iterator[Row]:
        server, _, variant = name.partition("@")
        if server == LIMIT:
            yield self._limit(work, name, variant or _RUNTIME, round)
            return
        flags = self.flags if server in FLAGS else ()
        with running(server, work, dtype=variant or "auto", flags=flags) as target:
            for callers in self.concurrency:
                setting = Setting(work.name, name, " ".join(flags), callers)
                yield self._closed(setting, target, round)

    def _closed(self, setting: Setting, target: Target, round: int) -> Row:
        loop = partial(closed_loop, target, concurrency=setting.concurrency)
        with progress(setting, self.seconds) as bar:
            window = asyncio.run(
                loop(
                    seconds=self.seconds, warmup_s=self.warmup_s, progress=lambda answered: bar.update(answered - bar.n)
                )
            )
        return report.of_window(setting, window, target, round=round, warmup_s=self.warmup_s)

    def _limit(self, work: Work, name: str, runtime: str, round: int) -> Row:
        """In a process of its own. The first round finds the best plan, the others keep it."""
        known = self.plans.get((work.name, name))
        line = [sys.executable, "-m", "benchmarks.limit", "--work", work.name, "--runtime", runtime]
        line += ["--seconds", str(self.seconds), *(known.split() if known else ())]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
        reached = json.loads(done.stdout.splitlines()[-1])
        self.plans[work.name, name] = f"--decoder {reached['decoder']} --plan {reached['plan']}"
        setting = Setting(work.name, name, f"{reached['runtime']} {reached['decoder']} {reached['plan']}")
        return report.of_limit(setting, reached["images_per_s"], round=round, seconds=self.seconds)


def progress(setting: Setting, seconds: float) -> "tqdm[None]":
    """A bar of images answered; only on a terminal."""
    return tqdm(desc=f"{setting.work} {setting.server}", unit=" images", disable=None, leave=False)


def say(row: Row) -> None:
    """A line a window."""
    callers = f" x{row.concurrency}" if row.concurrency else ""
    offered = f" at {row.offered_per_s:g}/s" if row.offered_per_s else ""
    times = f", p50 {row.p50_ms:.4g} ms, p99 {row.p99_ms:.4g} ms" if row.p50_ms else ""
    trouble = f", errors {row.errors}" * bool(row.errors) + f", {row.wrong} WRONG" * bool(row.wrong)
    print(
        f"{row.work} round {row.round} {row.server}{callers}{offered}: {row.images_per_s:.4g} images/s{times}{trouble}",
        flush=True,
    )


def main() -> None:
    """One comparison, or one of the other measurements."""
    a = _arguments()
    works = [WORKS[name] for name in a.work]
    results = Results(a.out)
    if a.tokens:
        from benchmarks import tokens

        print(tokens.measure())
    elif a.idle:
        from benchmarks import idle

        for work in works:
            print(idle.measure(work, flags=a.flags))
    elif a.mixed:
        from benchmarks import mixed

        print(mixed.measure(seconds=a.seconds, flags=a.flags))
    elif a.start:
        from benchmarks import start

        print(start.measure())
    elif a.fidelity:
        from benchmarks import fidelity

        for work in works:
            print(fidelity.measure(work))
    elif a.soak:
        from benchmarks import soak

        print(soak.measure(WORKS["small"], number=a.soak, concurrency=a.concurrency[0], flags=a.flags))
    elif a.curve:
        from benchmarks import curve

        for work in works:
            for row in curve.measure(
                work, loads=a.loads, seconds=a.seconds, warmup_s=a.warmup, rounds=a.rounds, flags=a.flags
            ):
                results.add(row)
                say(row)
        Console(width=_WIDTH).print(*report.curve_tables(results.rows), sep="\n\n")
        if a.plot:
            report.plot_curve(a.plot, results.rows)
    else:
        _require_peers(a.against)
        bench = Bench(works, a.against, a.concurrency, a.seconds, a.warmup, a.rounds, a.flags, results)
        bench.run()
        Console(width=_WIDTH).print(report.table(results.rows))
        if a.plot and results.rows:
            report.plot(a.plot, results.rows)
        if bench.failures:
            sys.exit(f"{len(bench.failures)} failed")


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    servers = [*_LIMITS, *SERVERS]
    parser.add_argument("--work", type=names(WORKS), default=["vit-b-32"], help=f"of {', '.join(WORKS)} [vit-b-32]")
    parser.add_argument("--against", type=names(servers), default=servers, help=f"of {', '.join(servers)} [all]")
    parser.add_argument("--concurrency", type=_numbers, default=[32], help="callers, such as 32,256 [32]")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each window [20]")
    parser.add_argument("--warmup", type=float, default=4.0, help="seconds before each [4]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("--flags", type=str.split, default=[], help="of visiontower, such as '--max-batch 16'")
    parser.add_argument("-o", "--out", type=Path, default=FOLDER / "results.csv", help=f"[{FOLDER}/results.csv]")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".svg, .png or .pdf")
    parser.add_argument("--quick", action="store_true", help="other defaults: a few minutes, one peer")
    parser.add_argument("--loads", type=_shares, default=_LOADS, help=f"of a curve: shares of a closed loop [{_LOADS}]")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--curve", action="store_true", help="latency against load for four batching policies")
    other.add_argument("--idle", action="store_true", help="what an idle server adds to one request")
    other.add_argument("--tokens", action="store_true", help="writing tokens as safetensors against JSON")
    other.add_argument("--mixed", action="store_true", help="two models and two resolutions at once")
    other.add_argument("--start", action="store_true", help="from the command to the first answer")
    other.add_argument("--fidelity", action="store_true", help="how far each fast path is from the reference")
    other.add_argument("--soak", type=int, metavar="N", help="resident memory after 1,000 and after N requests")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(**_QUICK)
        arguments = parser.parse_args(argv)
    return arguments


def _require_peers(against: Sequence[str]) -> None:
    """Ends the program if an environment has not been made."""
    wanted = {name.partition("@")[0] for name in against}.intersection(peers.names())
    if missing := sorted(name for name in wanted if not peers.python(name).exists()):
        sys.exit(f"First make what these need: python -m benchmarks.peers {' '.join(missing)}")


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads names with commas; what follows an @ is free."""

    def read(text: str) -> list[str]:
        named = text.split(",")
        if unknown := [name for name in named if name.partition("@")[0] not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(known)}")
        return named

    return read


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _shares(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
