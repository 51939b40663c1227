"""How fast `visiontower search` goes through vectors in a file, beside NumPy on all of them at once.

    python -m benchmarks.search --rows 1000000 --width 512 --dtype float16

Files as `visiontower embed` writes them, of random vectors, in a temporary folder: about four times the vectors' bytes.
They are read once before they are timed, so they come from memory if it holds them. The query is a vector: no encoder
is loaded. --cold drops a file from the system's memory before each round.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from encoders.contract.values import Floats, Grid
from service.bulk import results
from service.bulk.items import Item
from service.bulk.resume import Manifest
from service.bulk.rows import Columns, Good, Rows
from service.bulk.search import nearest
from service.bulk.sinks import FILES, sink_of, write

_PART = 50_000
_K = 5
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Timed:
    """Seconds of one way, by round. opening: until vectors can be read; scanning: until the names are known."""

    name: str
    opening: Sequence[float]
    scanning: Sequence[float]


def written(folder: Path, *, rows: int, width: int, dtype: str) -> list[Path]:
    """A file of each format."""
    columns = Columns({"pooled": (width,)}, dtype, pa.schema([]))
    about = {"model": "random", "revision": "", "resolution": "224x224", "runtime": "torch", "exact_pixels": False}

    def tables() -> Iterator[pa.Table]:
        rng = np.random.default_rng(0)
        for start in range(0, rows, _PART):
            items = [Item(f"photos/{row // 1000:04}/{row:08}.jpg") for row in range(start, min(start + _PART, rows))]
            block = rng.standard_normal((len(items), width), np.float32).astype(dtype)
            batch = columns.batch(items, [Good(Grid(7, 7), {"pooled": vector}) for vector in block])
            yield pa.Table.from_batches([batch])

    for suffix in FILES:
        sink = sink_of(folder / f"search{suffix}", arrays=["pooled"])
        sink.work.mkdir()
        write(sink, 0, Rows(columns, rows, 0, about, tables), Manifest({}, 0))
        sink.work.rmdir()
    return [folder / f"search{suffix}" for suffix in FILES]


def all_at_once(path: Path, query: Floats) -> Places:
    """As one would write it: load, widen, multiply, sort."""
    vectors = np.load(path).astype(np.float32)
    scores = vectors @ (query / np.linalg.norm(query)) / np.linalg.norm(vectors, axis=1)
    return np.argsort(-scores)[:_K]


def timed(path: Path, query: Floats) -> tuple[float, float, Places]:
    """Seconds of opening and of scanning, and the rows found."""
    started = time.perf_counter()
    result = results.opened(path)
    opened = time.perf_counter()
    found = nearest(result, query, _K)
    result.names(found.rows.tolist())
    return opened - started, time.perf_counter() - opened, found.rows


def measure(files: Sequence[Path], *, width: int, rounds: int, cold: bool) -> list[Timed]:
    """Every way in each round, in turn. Raises RuntimeError if two ways find other rows."""
    query = np.random.default_rng(1).standard_normal(width, np.float32)
    (npy,) = (file for file in files if file.suffix == ".npy")

    def reference(path: Path) -> tuple[float, float, Places]:
        started = time.perf_counter()
        rows = all_at_once(path, query)
        return 0.0, time.perf_counter() - started, rows

    ways: dict[str, tuple[Path, Callable[[Path], tuple[float, float, Places]]]] = {
        file.suffix: (file, lambda path: timed(path, query)) for file in files
    }
    ways["NumPy, .npy at once"] = (npy, reference)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    exact = all_at_once(npy, query).tolist()
    for round in range(rounds + 1):
        for name, (path, way) in ways.items():
            if cold:
                drop(path)
            opening, scanning, found = way(path)
            if found.tolist() != exact:
                raise RuntimeError(f"{name} found {found.tolist()}, and all at once {exact}")
            if round:
                seconds[name].append((opening, scanning))
    return [Timed(name, *zip(*pairs, strict=True)) for name, pairs in seconds.items()]


def drop(path: Path) -> None:
    """From the system's memory: the next read comes from the disk."""
    for part in filter(Path.is_file, [path, *path.rglob("*")]):  # a Lance dataset is a folder
        with part.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(found: Sequence[Timed], *, rows: int, width: int, dtype: str) -> Table:
    """A way a row; medians."""
    gigabytes = rows * width * np.dtype(dtype).itemsize / 1e9
    shown = Table(
        "way", "open s", "scan s", "GB/s", title=f"{rows:,} vectors, {width} wide, {dtype}: {gigabytes:.2f} GB"
    )
    for each in found:
        scan = float(np.median(each.scanning))
        shown.add_row(each.name, f"{np.median(each.opening):.2f}", f"{scan:.2f}", f"{gigabytes / scan:.2f}")
    return shown


def main() -> None:
    """Write, search, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="[1000000]")
    parser.add_argument("--width", type=int, default=512, help="[512]")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="[float16]")
    parser.add_argument("--rounds", type=int, default=3, help="after one that does not count [3]")
    parser.add_argument("--cold", action="store_true", help="from the disk")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made [the system's]")
    arguments = parser.parse_args()
    shape = {"rows": arguments.rows, "width": arguments.width, "dtype": arguments.dtype}
    with TemporaryDirectory(dir=arguments.folder) as folder:
        files = written(Path(folder), **shape)
        found = measure(files, width=arguments.width, rounds=arguments.rounds, cold=arguments.cold)
    Console().print(table(found, **shape))


if __name__ == "__main__":
    main()
