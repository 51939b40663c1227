"""Killed at any moment, the next run continues, and the result is that of an uninterrupted one, to the byte."""

import random
import signal
import time
from itertools import count
from pathlib import Path
from typing import Any

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


def content(out: Path) -> dict[str, bytes]:
    """All that a run has left."""
    if out.is_dir():
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*")}
    files = (path for path in out.parent.glob(f"{out.name}*") if path.is_file())
    return {path.name.removeprefix(out.name): path.read_bytes() for path in files}


def whole(images: Path, out: Path) -> dict[str, bytes]:
    """Of an uninterrupted run."""
    assert status(images, out) == 0
    return content(out)


@pytest.mark.parametrize("name", ["vectors", "vectors.parquet"])
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(images: Path, name: str, tmp_path: Path) -> None:
    _killed_again_and_again(images, name, tmp_path, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "vectors.parquet", "vectors.safetensors"])
def test_killed_again_and_again_at_other_steps(images: Path, name: str, tmp_path: Path) -> None:
    _killed_again_and_again(images, name, tmp_path, seed=2)


def _killed_again_and_again(images: Path, name: str, tmp_path: Path, *, seed: int) -> None:
    """At some step on the disk each time."""
    expected = whole(images, tmp_path / "whole" / name)
    chance = random.Random(seed)
    out = tmp_path / "out" / name
    kills = 0
    while not _ends(images, out, die_at=chance.randrange(30)):
        kills += 1
    assert kills
    assert content(out) == expected


def _ends(images: Path, out: Path, **how: Any) -> bool:
    """Whether a run was not killed."""
    said = out.parent.with_name("said")
    return _has_ended(status(images, out, said=said, **how), out, said)


def _has_ended(code: int, out: Path, said: Path) -> bool:
    """If the one before was killed as its last act, this one says that the file is there."""
    assert code in (0, KILLED) or f"{out} exists already" in said.read_text()
    return code != KILLED


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
@pytest.mark.parametrize(("name", "stride"), [("vectors", 3), ("vectors.parquet", 6), ("vectors.safetensors", 6)])
def test_killed_at_steps_on_the_disk(images: Path, name: str, stride: int, tmp_path: Path) -> None:
    """Once at every third, and then not any more; of single files at every sixth, since shards are written alike."""
    expected = whole(images, tmp_path / "whole" / name)
    for step in count(step=stride):
        out = tmp_path / str(step) / name
        if _ends(images, out, die_at=step):
            break
        assert _ends(images, out), step
        assert content(out) == expected, step
    assert step > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "vectors.npy"])
def test_killed_at_random_moments(images: Path, name: str, tmp_path: Path) -> None:
    """From outside, by the clock, within the time that a whole run takes."""
    options = {} if name == "vectors" else {"output": "pooled"}
    assert status(images, tmp_path / "first" / name, **options) == 0  # the next need not import anything
    begun = time.monotonic()
    assert status(images, tmp_path / name, **options) == 0
    whole_s = time.monotonic() - begun
    expected = content(tmp_path / name)
    chance = random.Random(0)
    kills = 0
    for number in range(5):
        out, said = tmp_path / str(number) / name, tmp_path / "said"
        while True:
            process = start(images, out, said=said, **options)
            process.join(chance.uniform(0.0, whole_s))
            process.kill()
            process.join()
            if _has_ended(process.exitcode, out, said):
                break
            kills += 1
        assert content(out) == expected
    assert kills


@pytest.mark.parametrize("step", [6, pytest.param(2, marks=pytest.mark.slow), pytest.param(11, marks=pytest.mark.slow)])
def test_killed_while_it_tries_errors_again(images: Path, step: int, tmp_path: Path) -> None:
    """Shards that were not reached keep their errors, and lose nothing."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    reference, out = tmp_path / "reference", tmp_path / "out"
    for result in (reference, out):
        assert status(folder, result) == 0
    for index in BAD:
        Image.new("RGB", (12, 16), (index, 0, 0)).save(folder / f"{index:02}.png", "PNG")
    assert status(folder, reference, retry_errors=True) == 0
    assert status(folder, out, retry_errors=True, die_at=step) == KILLED
    assert status(folder, out, retry_errors=True) == 0
    assert content(out) == content(reference)


@pytest.mark.parametrize("name", ["vectors", "vectors.parquet", "vectors.safetensors"])
def test_a_full_disk_is_said_and_the_next_run_continues(images: Path, name: str, tmp_path: Path) -> None:
    """A file may not be larger than a part of the result needs; the system says it as it says that a disk is full."""
    expected = whole(images, tmp_path / "whole" / name)
    out, said = tmp_path / "out" / name, tmp_path / "said"
    room = max(map(len, expected.values())) - 1000
    assert status(images, out, most_bytes=room, said=said) == FULL
    assert "File too large. What is done is kept. Make room; then the same command continues." in said.read_text()
    assert not list(tmp_path.rglob("*.new")), "what is half written takes no room"
    assert status(images, out) == 0
    assert content(out) == expected
