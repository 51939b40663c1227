"""What an attack on the server costs everybody else: each of benchmarks.attacks in turn beside callers who behave.

    python -m benchmarks.chaos --seconds 1200
    python -m benchmarks.chaos --seconds 60 --attacks scans,uploads

Three servers are started one after the other: one that is attacked, one under overload, and one whose device fails and
hangs at random. The callers, the attacker and the server are processes of their own. Of the callers who behave it
prints how many requests were answered, refused, lost and wrong, and p50 and p99 beside those without an attack; of the
server the event loop's longest pause, and resident bytes at the start, at the highest and at the end.
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.attacks import ATTACKS
from benchmarks.http1 import Address
from benchmarks.load import Target, Usage, closed_loop, open_loop, percentiles, wrong
from benchmarks.servers import OURS, running, target
from benchmarks.works import FOLDER, WORKS

_WORK = WORKS["small"]
_BEHAVED = 4
"""Callers who behave, each waiting for its answer."""
_PEAK = 32
_REST_S = 3.0
"""After an attack, until the next."""
_IDLE_S = 70.0
"""Until the server has given back what it does not need."""
_FOLDER = FOLDER / "chaos"
_LOOK_S = 0.1
_WIDTH = 150
_FAILS, _HANGS = 0.02, 0.0005


@dataclass(frozen=True)
class Behaved:
    """How it went for callers who behave. refused: by 429 and 503; failed: any other status. Times in seconds."""

    answered: int
    refused: int
    failed: int
    lost: int
    wrong: int
    a_second: float
    p50: float
    p99: float
    server_cores: float
    client_cores: float


@dataclass(frozen=True)
class Phase:
    """A time with an attack, or without. pause_s: the event loop's longest. ends: of the attack's requests."""

    name: str
    behaved: Behaved
    pause_s: float
    rss: int
    ends: dict[str, int]


def behave(port: int, pid: int, *, callers: int, seconds: float, warmup_s: float, rate: float | None) -> Behaved:
    """Callers who behave, in this process: so many, each waiting for its answer, or so many requests a second."""
    asked: Target = target(OURS, _WORK, Address("127.0.0.1", port), pid=pid)
    if rate is None:
        window = asyncio.run(closed_loop(asked, concurrency=callers, seconds=seconds, warmup_s=warmup_s))
    else:
        window = asyncio.run(open_loop(asked, rate=rate, seconds=seconds, warmup_s=warmup_s))
    refused = sum(sample.status in (429, 503) for sample in window.samples)
    hung_up = sum(sample.status == 0 for sample in window.samples)
    p50, _, p99 = percentiles([sample.seconds for sample in window.answered])
    return Behaved(
        answered=len(window.answered),
        refused=refused,
        failed=len(window.samples) - len(window.answered) - refused - hung_up,
        lost=window.lost + hung_up,
        wrong=wrong(window.samples, asked),
        a_second=window.images_per_s,
        p50=p50,
        p99=p99,
        server_cores=window.cores,
        client_cores=window.client_cores,
    )


class Watched:
    """A server that is up, and what is seen of it. highest: resident bytes since it was last set."""

    def __init__(self, asked: Target, pauses: Path) -> None:
        self.asked = asked
        self.highest = 0
        self._pauses = pauses
        self._ended = threading.Event()
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def phase(
        self,
        name: str,
        *,
        seconds: float,
        callers: int = _BEHAVED,
        rate: float | None = None,
        attack: str | None = None,
    ) -> Phase:
        """Callers who behave for so long, beside an attack or alone. rate: as of `behave`."""
        port, pid = self.asked.address.port, self.asked.pid
        self.highest = 0
        attacker = _attacker(attack, port, seconds + 2.0) if attack else None
        begun = time.monotonic()
        try:
            window: Future[Behaved] = self._pool.submit(
                behave, port, pid, callers=callers, seconds=seconds, warmup_s=2.0, rate=rate
            )
            behaved = window.result()
            ended = time.monotonic()
            ends: dict[str, int] = json.loads(attacker.communicate()[0] or "{}") if attacker else {}
        finally:
            if attacker:
                attacker.kill()
        pauses = [
            float(s) for at, s in map(str.split, self._pauses.read_text().splitlines()) if begun < float(at) < ended
        ]
        phase = Phase(name, behaved, max(pauses, default=0.0), self.highest, ends)
        _say(phase)
        return phase

    @property
    def memory_budget(self) -> int:
        """Bytes that requests may hold together, by the server's own word."""
        answer = httpx.get(f"http://127.0.0.1:{self.asked.address.port}/metrics", timeout=30)
        return int(float(re.findall(r'host_memory_bytes\{stage="limit"\} (\S+)', answer.text)[0]))

    @property
    def rss(self) -> int:
        """Resident bytes now."""
        return Usage.of(self.asked.pid).rss

    def close(self) -> None:
        """Stop looking, and end the callers."""
        self._ended.set()
        self._watch.join()
        for callers in multiprocessing.active_children():
            callers.terminate()
        self._pool.shutdown()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self.highest = max(self.highest, self.rss)


@contextmanager
def server(name: str, *, flags: Sequence[str] = (), fails: float = 0.0, hangs: float = 0.0) -> Iterator[Watched]:
    """One of ours, watched."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    pauses = _FOLDER / f"{name}.pauses"
    pauses.write_text("")
    program = [sys.executable, "-m", "benchmarks.chaos_server", "--pauses", str(pauses)]
    program += ["--fails", str(fails), "--hangs", str(hangs)]
    with running(OURS, _WORK, flags=flags, program=program) as asked:
        watched = Watched(asked, pauses)
        try:
            yield watched
        finally:
            watched.close()


def _attacker(attack: str, port: int, seconds: float) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "benchmarks.attacks", attack, "--port", str(port), "--seconds", str(seconds)]
    attacker = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert attacker.stdout is not None
    attacker.stdout.readline()  # "begins"
    return attacker


def measure(seconds: float, attacks: Sequence[str], flags: Sequence[str]) -> str:
    """Everything, in about so many seconds; the report."""
    each = max(5.0, seconds / (len(attacks) + 6) - _REST_S)
    with server("attacked", flags=flags) as ours:
        ours.phase("warm-up", seconds=5.0)
        start, budget = ours.rss, ours.memory_budget
        phases = [ours.phase("nothing", seconds=each)]
        for attack in attacks:
            phases.append(ours.phase(attack, seconds=each, attack=attack))
            time.sleep(_REST_S)
        phases.append(ours.phase("nothing, after", seconds=each))
        time.sleep(_IDLE_S)
        end = ours.rss
    highest = max(phase.rss for phase in phases)
    with server("overload", flags=flags) as ours:
        peak = ours.phase("peak", callers=_PEAK, seconds=each)
        over = ours.phase("twice the peak", rate=2 * peak.behaved.a_second, seconds=each)
        goodput = over.behaved.a_second / peak.behaved.a_second
        a_core = [each.behaved.a_second / each.behaved.server_cores for each in (peak, over)]
    with server("flaky", flags=[*flags, "--on-hang", "stay"], fails=_FAILS, hangs=_HANGS) as ours:
        flaky = ours.phase("device fails, hangs", seconds=2 * each, attack="vanish")
    table = _table([*phases, peak, over, flaky], than=phases[0])
    with (console := Console(width=_WIDTH)).capture() as captured:
        console.print(table)
    return (
        f"{captured.get()}"
        f"resident MB: {start / 1e6:.0f} at the start, {highest / 1e6:.0f} at the highest, {end / 1e6:.0f} at the end "
        f"({end / start - 1:+.0%}); at the highest {(highest - start) / budget:.0%} of the memory budget of "
        f"{budget / 1e6:.0f} MB above the start\n"
        f"goodput at twice the peak's rate: {goodput:.0%} of the peak; of every core that the server had, "
        f"{a_core[1] / a_core[0]:.0%}. Cores at the peak and at twice its rate: server {peak.behaved.server_cores:.2f} "
        f"and {over.behaved.server_cores:.2f}, callers {peak.behaved.client_cores:.2f} and "
        f"{over.behaved.client_cores:.2f}"
    )


def _table(phases: Sequence[Phase], *, than: Phase) -> Table:
    table = Table("attack", "answered", "refused", "failed", "lost", "wrong", "p50 ms", "p99 ms", "p99 of before")
    for column in ("loop's pause ms", "MB", "the attack's ends"):
        table.add_column(column)
    for phase in phases:
        one = phase.behaved
        table.add_row(
            phase.name,
            *map(str, (one.answered, one.refused, one.failed, one.lost, one.wrong)),
            *(f"{1e3 * seconds:.1f}" for seconds in (one.p50, one.p99)),
            f"{one.p99 / than.behaved.p99:.1f} x",
            f"{1e3 * phase.pause_s:.0f}",
            f"{phase.rss / 1e6:.0f}",
            ", ".join(f"{count} {end}" for end, count in sorted(phase.ends.items())),
        )
    return table


def _say(phase: Phase) -> None:
    one = phase.behaved
    print(
        f"{phase.name}: {one.a_second:.0f}/s, p50 {1e3 * one.p50:.1f} ms, p99 {1e3 * one.p99:.1f} ms, "
        f"{one.refused} refused, {one.failed} failed, {one.lost} lost, {one.wrong} wrong; "
        f"pause {1e3 * phase.pause_s:.0f} ms, {phase.rss / 1e6:.0f} MB; {phase.ends}",
        flush=True,
    )


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(ATTACKS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: known are {', '.join(ATTACKS)}")
    return names


def main() -> None:
    """The run, and its report."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = list(ATTACKS)
    parser.add_argument("--seconds", type=float, default=1200.0, help="of all of it, about [1200]")
    parser.add_argument("--attacks", type=_names, default=every, help=f"of {', '.join(every)} [all]")
    parser.add_argument("--flags", type=str.split, default=[], help="of visiontower, such as '--memory-budget 1GiB'")
    given = parser.parse_args()
    _ = _WORK.references  # made now, not while something runs
    print(measure(given.seconds, given.attacks, given.flags))


if __name__ == "__main__":
    main()
