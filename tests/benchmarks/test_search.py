"""The measurement of search: files as `embed` writes them, and every way finds the same."""

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import search
from service.bulk import results


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_way_is_measured_in_every_round(dtype: str, tmp_path: Path) -> None:
    files = search.written(tmp_path, rows=700, width=16, dtype=dtype)
    assert [results.opened(file).rows for file in files] == [700] * 4
    found = search.measure(files, width=16, rounds=2, cold=False)
    assert [each.name for each in found] == [".parquet", ".npy", ".safetensors", ".lance", "NumPy, .npy at once"]
    assert {len(each.scanning) for each in found} == {2}
    console = Console(width=80, record=True)
    console.print(search.table(found, rows=700, width=16, dtype=dtype))
    assert "NumPy" in console.export_text()


def test_a_way_that_finds_other_rows_is_an_error(tmp_path: Path) -> None:
    files = search.written(tmp_path, rows=50, width=4, dtype="float16")
    other = tmp_path / "other"
    other.mkdir()
    (changed,) = (
        file for file in search.written(other, rows=40, width=4, dtype="float16") if file.suffix == ".parquet"
    )
    with pytest.raises(RuntimeError, match=r"\.parquet found"):
        search.measure([changed, *files[1:]], width=4, rounds=1, cold=False)
