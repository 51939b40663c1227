"""Killed at any moment, the next run continues, and the result is that of an uninterrupted one, to the byte.

Each kill is counted, and pytest's summary says how many there were. A Lance dataset has the same rows: the library
gives its files random names.
"""

import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.service.bulk.apart import FULL, start, status

FILES = 45
BAD = {3, 17, 44}
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 files, three of them broken."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(FILES):
        path = folder / f"{index:02}.png"
        if index in BAD:
            path.write_bytes(b"no image")
        else:
            values = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(values).save(path)
    return folder


class Killer:
    """Runs that are killed. kills: how many have been."""

    def __init__(self) -> None:
        self.kills = 0

    def ends(self, images: Path, out: Path, **how: Any) -> bool:
        """Whether a run was not killed. how: as `embed` of apart.py has it."""
        said = out.parent.with_name("said")
        return self._has_ended(status(images, out, said=said, **how), out, said)

    def ends_within(self, seconds: float, images: Path, out: Path, **how: Any) -> bool:
        """Whether a run has ended by then. Else it is killed, whatever it is at."""
        said = out.parent.with_name("said")
        process = start(images, out, said=said, **how)
        process.join(seconds)
        process.kill()
        process.join()
        return self._has_ended(process.exitcode, out, said)

    def _has_ended(self, code: int, out: Path, said: Path) -> bool:
        """If the one before was killed as its last act, this one says that the result is there."""
        assert code in (0, KILLED) or f"{out} exists already" in said.read_text()
        self.kills += code == KILLED
        return code != KILLED


@pytest.fixture
def killer(record_property: Callable[[str, object], None]) -> Iterator[Killer]:
    killer = Killer()
    yield killer
    assert killer.kills
    record_property("kills", killer.kills)


def content(out: Path) -> dict[str, Any]:
    """All that a run has left: the bytes of its files; of a Lance dataset its rows, and what lies beside it."""
    beside = (path for path in out.parent.glob(f"{out.name}*") if path.is_file())
    files = {path.name.removeprefix(out.name): path.read_bytes() for path in beside}
    if out.suffix == ".lance":
        return {**files, "rows": lance.dataset(out).to_table()}
    return {**files, **{str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*")}}


def whole(images: Path, out: Path) -> dict[str, Any]:
    """Of an uninterrupted run."""
    assert status(images, out) == 0
    return content(out)


@pytest.mark.parametrize("name", ["vectors", "vectors.parquet"])
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(
    images: Path, name: str, tmp_path: Path, killer: Killer
) -> None:
    _killed_again_and_again(images, name, tmp_path, killer, seeds=[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rounds"), [("vectors", 6), ("vectors.parquet", 3), ("vectors.safetensors", 3), ("vectors.lance", 3)]
)
def test_killed_again_and_again_in_other_ways(
    images: Path, name: str, rounds: int, tmp_path: Path, killer: Killer
) -> None:
    _killed_again_and_again(images, name, tmp_path, killer, seeds=range(1, 1 + rounds))


def _killed_again_and_again(images: Path, name: str, tmp_path: Path, killer: Killer, *, seeds: Iterable[int]) -> None:
    """At one of its next steps on the disk each time, until it has ended."""
    expected = whole(images, tmp_path / "whole" / name)
    for seed in seeds:
        chance = random.Random(seed)
        out = tmp_path / str(seed) / name
        while not killer.ends(images, out, die_at=int(chance.triangular(0, 40, 8))):
            pass
        assert content(out) == expected


def test_killed_over_a_table_it_goes_on_with_its_columns(images: Path, tmp_path: Path) -> None:
    """The rows that are done are not read again; a table that was written anew since is refused."""
    pictures = [path.read_bytes() for path in sorted(images.iterdir())]
    table, out = tmp_path / "table.parquet", tmp_path / "vectors"
    rows = pa.table({"picture": pictures, "place": pa.array(range(FILES), pa.int16()), "caption": ["a"] * FILES})
    pq.write_table(rows, table, row_group_size=7)
    how = {"columns": ["place", "caption"]}
    assert status(table, tmp_path / "whole", **how) == 0
    assert status(table, out, die_at=35, **how) == KILLED
    assert list(out.glob("part-*.parquet")), "killed after its first shard"
    assert not (out / "part-00002.parquet").exists()
    assert status(table, out, **how) == 0
    assert content(out) == content(tmp_path / "whole")
    result = pq.read_table(out)
    assert (result["place"].type, result["place"].to_pylist()) == (pa.int16(), [*range(FILES)])
    assert result["id"].to_pylist() == [f"{table}#{number}" for number in range(FILES)]
    pq.write_table(rows.slice(1), table)
    assert status(table, out, said=tmp_path / "said", **how) == FULL
    assert f"inputs file {table} bytes was" in (tmp_path / "said").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stride"), [("vectors", 2), ("vectors.parquet", 4), ("vectors.safetensors", 4), ("vectors.lance", 4)]
)
def test_killed_at_steps_on_the_disk(images: Path, name: str, stride: int, tmp_path: Path, killer: Killer) -> None:
    """Once at every second, and then not any more; of single results at every fourth: shards are written alike."""
    expected = whole(images, tmp_path / "whole" / name)
    for step in count(step=stride):
        out = tmp_path / str(step) / name
        if killer.ends(images, out, die_at=step):
            break
        assert killer.ends(images, out), step
        assert content(out) == expected, step
    assert step > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "vectors.npy", "vectors.lance"])
def test_killed_at_random_moments(images: Path, name: str, tmp_path: Path, killer: Killer) -> None:
    """From outside, by the clock, within the time that a whole run takes."""
    options = {"output": "pooled"} if name == "vectors.npy" else {}
    assert status(images, tmp_path / "first" / name, **options) == 0  # the next need not import anything
    begun = time.monotonic()
    assert status(images, tmp_path / name, **options) == 0
    whole_s = time.monotonic() - begun
    expected = content(tmp_path / name)
    chance = random.Random(0)
    for number in range(5):
        out = tmp_path / str(number) / name
        while not killer.ends_within(chance.uniform(0.0, whole_s), images, out, **options):
            pass
        assert content(out) == expected


@pytest.mark.parametrize("step", [6, pytest.param(2, marks=pytest.mark.slow), pytest.param(11, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["out", pytest.param("out.lance", marks=pytest.mark.slow)])
def test_killed_while_it_tries_errors_again(images: Path, name: str, step: int, tmp_path: Path, killer: Killer) -> None:
    """Shards that were not reached keep their errors, and lose nothing."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    reference, out = tmp_path / "reference" / name, tmp_path / name
    for result in (reference, out):
        assert status(folder, result) == 0
    for index in BAD:
        Image.new("RGB", (12, 16), (index, 0, 0)).save(folder / f"{index:02}.png", "PNG")
    assert status(folder, reference, retry_errors=True) == 0
    assert not killer.ends(folder, out, retry_errors=True, die_at=step)
    assert killer.ends(folder, out, retry_errors=True)
    assert content(out) == content(reference)


@pytest.mark.parametrize(
    "name",
    ["vectors", "vectors.parquet", "vectors.safetensors", pytest.param("vectors.lance", marks=pytest.mark.slow)],
)
def test_a_full_disk_is_said_and_the_next_run_continues(images: Path, name: str, tmp_path: Path) -> None:
    """A file may not be larger than a part of the result needs; the system says it as it says that a disk is full."""
    expected = whole(images, tmp_path / "whole" / name)
    out, said = tmp_path / "out" / name, tmp_path / "said"
    sizes = [path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert status(images, out, most_bytes=max(sizes) - 1000, said=said) == FULL  # Lance's library does not notice
    reason = "No space left on device" if name == "vectors.lance" else "File too large"
    advice = "What is done is kept. Make room; then the same command continues."
    assert said.read_text().endswith(f" could not be written: {reason}. {advice}")
    assert not list(tmp_path.rglob("*.new")), "what is half written takes no room"
    assert status(images, out) == 0
    assert content(out) == expected
