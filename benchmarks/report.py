"""Rows of results: as CSV, each on disk as soon as it is measured; as a table of medians and ratios; as a plot."""

import csv
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from rich.table import Table

from benchmarks import peers
from benchmarks.load import Target, Window, percentiles, wrong
from benchmarks.servers import OURS

LIMIT = "limit"


@dataclass(frozen=True)
class Setting:
    """What is measured, apart from the round. offered: images a second of an open loop, 0 in a closed one.

    settings: the flags of a server, the plan of a limit. concurrency: callers of a closed loop.
    """

    work: str
    server: str
    settings: str
    concurrency: int = 0
    offered: float = 0.0


@dataclass(frozen=True)
class Row:
    """One window. Milliseconds, cores and MB (10^6); zeros where a limit has no such thing."""

    time: str
    commit: str
    torch: str
    cpu: str
    cpus: int
    work: str
    server: str
    settings: str
    concurrency: int
    offered_per_s: float
    round: int
    warmup_s: float
    seconds: float
    images_per_s: float
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    server_cores: float = 0.0
    client_cores: float = 0.0
    rss_before_mb: float = 0.0
    rss_after_mb: float = 0.0
    errors: str = ""
    wrong: int = 0


def of_window(setting: Setting, window: Window, target: Target, *, round: int, warmup_s: float) -> Row:
    """What a server did. Looks at every answer."""
    p50, p95, p99 = (1000 * second for second in percentiles([sample.seconds for sample in window.answered]))
    return _row(
        setting,
        round=round,
        warmup_s=warmup_s,
        seconds=window.seconds,
        images_per_s=window.images_per_s,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        server_cores=window.cores,
        client_cores=window.client_cores,
        rss_before_mb=window.before.rss / 1e6,
        rss_after_mb=window.after.rss / 1e6,
        errors=" ".join(f"{status}:{number}" for status, number in window.errors.items()),
        wrong=wrong(window.samples, target),
    )


def of_limit(setting: Setting, images_per_s: float, *, round: int, seconds: float) -> Row:
    """What the limit was in this round."""
    return _row(setting, round=round, seconds=seconds, images_per_s=images_per_s)


def _row(setting: Setting, *, round: int, seconds: float, warmup_s: float = 0.0, **measured: float | int | str) -> Row:
    rounded = {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in measured.items()}
    known: dict[str, Any] = {**machine(), **rounded}
    return Row(
        time=time.strftime("%Y-%m-%dT%H:%M:%S"),
        **known,
        work=setting.work,
        server=setting.server,
        settings=setting.settings,
        concurrency=setting.concurrency,
        offered_per_s=_four_digits(setting.offered),
        round=round,
        warmup_s=warmup_s,
        seconds=float(f"{seconds:.5g}"),
    )


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


@cache
def machine() -> dict[str, Any]:
    """commit: with a + if files differ from it."""
    git = ["git", "describe", "--always", "--dirty=+", "--exclude", "*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {"commit": commit, "torch": version("torch"), "cpu": _cpu(), "cpus": os.cpu_count() or 1}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


class Results:
    """A CSV file that grows by a row at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Keep it, and write it at once; to what an earlier run left."""
        self.rows.append(row)
        names = [field.name for field in fields(Row)]
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, names)
            if is_new:
                writer.writeheader()
            writer.writerow(asdict(row))


Of: TypeAlias = Callable[[Row], float]


@dataclass(frozen=True)
class Line:
    """The rounds of one setting. of_limit: ratio to the limit of the same rounds; of_peer: to the best peer's."""

    rows: Sequence[Row]
    of_limit: float | None
    of_peer: float | None

    def median(self, of: Of) -> float:
        """Over the rounds."""
        return median(map(of, self.rows))


def lines(rows: Iterable[Row]) -> list[Line]:
    """One line a setting, the works in order of appearance, in each the fastest first."""
    by_setting: dict[tuple[str, int, str, str], list[Row]] = {}
    for row in rows:
        by_setting.setdefault((row.work, row.concurrency, row.server, row.settings), []).append(row)
    groups = list(by_setting.values())
    made = [
        Line(
            group,
            of_limit=_ratio(group, _best(groups, group, lambda row: row.server.startswith(LIMIT))),
            of_peer=_ratio(group, _best(groups, group, _is_peer)),
        )
        for group in groups
    ]
    order = list(dict.fromkeys((line.rows[0].work) for line in made))
    return sorted(made, key=lambda line: (order.index(line.rows[0].work), -line.median(_rate)))


def _is_peer(row: Row) -> bool:
    return row.server.partition("@")[0] in peers.names()


def _rate(row: Row) -> float:
    return row.images_per_s


def _best(groups: Sequence[Sequence[Row]], like: Sequence[Row], is_one: Callable[[Row], bool]) -> float | None:
    """The highest median of those of the same work; a limit has no concurrency, and a peer must have had the same."""
    found = [
        median(map(_rate, group))
        for group in groups
        if is_one(group[0])
        and group[0].work == like[0].work
        and (group[0].concurrency in (0, like[0].concurrency) or like[0].concurrency == 0)
    ]
    return max(found, default=None)


def _ratio(group: Sequence[Row], to: float | None) -> float | None:
    return median(map(_rate, group)) / to if to else None


def table(rows: Iterable[Row]) -> Table:
    """For a terminal."""
    shown = Table("work", "server", "callers", box=None, header_style="bold")
    for name in ("img/s", "lowest", "highest", "of limit", "x peer", "p50 ms", "p95 ms", "p99 ms", "cores", "RSS MB"):
        shown.add_column(name, justify="right")
    shown.add_column("errors")
    shown.add_column("wrong", justify="right")
    for line in lines(rows):
        row = line.rows[0]
        rates = [each.images_per_s for each in line.rows]
        shown.add_row(
            row.work,
            row.server if row.server.startswith(LIMIT) else f"{row.server} {row.settings}".strip(),
            str(row.concurrency or ""),
            f"{median(rates):.4g}",
            f"{min(rates):.4g}",
            f"{max(rates):.4g}",
            "" if line.of_limit is None else f"{line.of_limit:.1%}",
            "" if line.of_peer is None else f"{line.of_peer:.2f}",
            *_server_columns(line),
            " ".join(each.errors for each in line.rows if each.errors),
            str(sum(each.wrong for each in line.rows)),
        )
    return shown


def _server_columns(line: Line) -> list[str]:
    columns: list[tuple[Of, str]] = [
        (lambda row: row.p50_ms, ".4g"),
        (lambda row: row.p95_ms, ".4g"),
        (lambda row: row.p99_ms, ".4g"),
        (lambda row: row.server_cores, ".2f"),
        (lambda row: row.rss_after_mb, ".0f"),
    ]
    if line.rows[0].server.startswith(LIMIT):
        return ["" for _ in columns]
    return [format(line.median(of), how) for of, how in columns]


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Bars of images a second, a panel a work. Needs the extra `plot`."""
    from matplotlib.figure import Figure

    works = list(dict.fromkeys(row.work for row in rows))
    figure = Figure(figsize=(8, 2.6 * len(works)), layout="constrained")
    for axes, work in zip(figure.subplots(len(works), squeeze=False)[:, 0], works, strict=True):
        of_work = [line for line in lines(rows) if line.rows[0].work == work][::-1]
        names = [f"{line.rows[0].server} {line.rows[0].concurrency or ''}".strip() for line in of_work]
        rates = [line.median(_rate) for line in of_work]
        colours = ["tab:blue" if row.rows[0].server.startswith(OURS) else "tab:gray" for row in of_work]
        axes.bar_label(axes.barh(names, rates, color=colours), fmt="%.4g", padding=3)
        axes.set_title(work)
        axes.set_xlabel("images/s")
        axes.margins(x=0.12)
    figure.savefig(path)


@dataclass(frozen=True)
class Point:
    """Of a curve: medians over the rounds. load: images a second, offered."""

    load: float
    p50_ms: float
    p99_ms: float


def curves(rows: Iterable[Row]) -> dict[str, dict[str, list[Point]]]:
    """By work and policy, in order of appearance; loads rise."""
    found: dict[str, dict[str, dict[float, list[Row]]]] = {}
    for row in rows:
        found.setdefault(row.work, {}).setdefault(row.server, {}).setdefault(row.offered_per_s, []).append(row)
    return {
        work: {policy: [_point(load, at) for load, at in sorted(loads.items())] for policy, loads in policies.items()}
        for work, policies in found.items()
    }


def _point(load: float, rounds: Sequence[Row]) -> Point:
    return Point(load, median(row.p50_ms for row in rounds), median(row.p99_ms for row in rounds))


def curve_tables(rows: Iterable[Row]) -> Iterator[Table]:
    """For a terminal, one a work: p50 / p99 in milliseconds by policy at each load."""
    for work, by_policy in curves(rows).items():
        shown = Table(f"{work}, img/s", *by_policy, box=None, header_style="bold")
        for points in zip(*by_policy.values(), strict=True):
            shown.add_row(f"{points[0].load:.4g}", *(f"{point.p50_ms:.0f} / {point.p99_ms:.0f}" for point in points))
        yield shown


def plot_curve(path: Path, rows: Sequence[Row]) -> None:
    """p50 (solid) and p99 (dashed) against the load, a panel a work, a colour a policy. Needs the extra `plot`."""
    from matplotlib.figure import Figure

    works = curves(rows)
    figure = Figure(figsize=(8, 5 * len(works)), layout="constrained")
    for axes, (work, by_policy) in zip(figure.subplots(len(works), squeeze=False)[:, 0], works.items(), strict=True):
        for index, (policy, points) in enumerate(by_policy.items()):
            loads = [point.load for point in points]
            axes.plot(loads, [point.p50_ms for point in points], f"C{index}-o", label=policy)
            axes.plot(loads, [point.p99_ms for point in points], f"C{index}--")
        axes.set(xlabel="images/s offered", ylabel="ms, p50 and (dashed) p99", yscale="log", title=work)
        axes.legend()
    figure.savefig(path)
