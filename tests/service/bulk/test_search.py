"""The nearest vectors of a bulk result: those that NumPy finds, whatever the format, the dtype and the blocks."""

import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from encoders.contract.values import ImageSize
from service.bulk.errors import BulkError
from service.bulk.results import Origin, Result, opened
from service.bulk.search import cosines, nearest, widened

Array = np.ndarray[Any, Any]

WIDTH = 24
ABOUT = {"model": "fake:vit", "revision": "fake", "resolution": "32x32", "runtime": "torch", "exact_pixels": "false"}


def vectors(rows: int, dtype: str = "float32", *, seed: int = 0) -> Array:
    """Of lengths between about 1 and 100."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, WIDTH)) * rng.uniform(0.2, 20, (rows, 1))).astype(dtype)


def names(rows: int) -> list[str]:
    return [f"photos/{row:05}.jpg" for row in range(rows)]


def table(
    values: Array, paths: Sequence[str], *, missing: Sequence[int] = (), about: dict[str, str] = ABOUT
) -> pa.Table:
    """A run's table; rows that are missing are null, as an image's that failed."""
    lists = pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), values.shape[1], mask=pa.array(np.isin(np.arange(len(values)), missing))
    )
    return pa.table({"id": list(paths), "pooled": lists}).replace_schema_metadata(about)


def as_parquet(path: Path, values: Array, paths: Sequence[str]) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(table(values, paths), path, row_group_size=37, compression="zstd")
    return path


def as_npy(path: Path, values: Array, paths: Sequence[str]) -> Path:
    path = path.with_suffix(".npy")
    np.save(path, values)
    path.with_name("out.npy.json").write_text(json.dumps({**ABOUT, "exact_pixels": False, "ids": paths}))
    return path


def as_safetensors(path: Path, values: Array, paths: Sequence[str]) -> Path:
    path = path.with_suffix(".safetensors")
    save_file({"grid": np.zeros(3, np.int32), "pooled": values}, path, {**ABOUT, "ids": json.dumps(paths)})
    return path


def as_shards(path: Path, values: Array, paths: Sequence[str]) -> Path:
    """With an empty one between them."""
    path.mkdir()
    for number, (start, stop) in enumerate([(0, 50), (50, 50), (50, 61), (61, len(values))]):
        pq.write_table(
            table(values[start:stop], paths[start:stop]), path / f"part-{number:05}.parquet", row_group_size=20
        )
    return path


def as_lance(path: Path, values: Array, paths: Sequence[str]) -> Path:
    """In files of 50 rows."""
    path = path.with_suffix(".lance")
    lance.write_dataset(table(values, paths), path, max_rows_per_file=50)
    return path


FORMS = (as_parquet, as_npy, as_safetensors, as_lance, as_shards)
Form = Callable[[Path, Array, Sequence[str]], Path]
each_form = pytest.mark.parametrize("form", FORMS)


def in_blocks(path: Path, *, column: str = "pooled") -> Result:
    """Of seven rows, so that a few hundred have many blocks and stretches."""
    return opened(path, column=column, block_numbers=7 * WIDTH + 1)


def reference(values: Array, query: Array, k: int) -> tuple[Array, Array]:
    """All at once, in float64."""
    wide, asked = values.astype(np.float64), query.astype(np.float64)
    scores = wide @ asked / np.linalg.norm(wide, axis=1) / np.linalg.norm(asked)
    best = np.argsort(-scores, kind="stable")[:k]
    return best, scores[best]


@each_form
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_nearest_are_those_that_numpy_finds(form: Form, dtype: str, tmp_path: Path) -> None:
    values, paths = vectors(211, dtype), names(211)
    result = in_blocks(form(tmp_path / "out", values, paths))
    assert (result.rows, result.width, len(result.stretches) > 1) == (211, WIDTH, True)
    assert result.origin == Origin("fake:vit", "fake", ImageSize(32, 32), "torch", False)
    for seed, k in ((1, 1), (2, 5), (3, 40), (4, 1000)):
        query = 3 * vectors(1, seed=seed)[0]
        rows, scores = reference(values, query, k)
        found = nearest(result, query, k)
        assert found.rows.tolist() == rows.tolist()
        np.testing.assert_allclose(found.cosines, scores, atol=1e-6)
        assert result.names(found.rows.tolist()) == [paths[row] for row in rows]
        assert found.vectors == 211


@pytest.mark.parametrize("rows", [1, 6, 7, 8, 111, 112, 113, 224])
def test_no_row_is_lost_at_the_edge_of_a_block(rows: int, tmp_path: Path) -> None:
    values = vectors(rows)
    for form in FORMS[:4]:
        result = in_blocks(form(tmp_path / "out", values, names(rows)))
        for row in range(rows):
            found = nearest(result, values[row], 1)
            assert (found.rows.tolist(), found.vectors) == ([row], rows)


@each_form
def test_equal_vectors_score_the_same_and_come_in_the_order_of_the_rows(form: Form, tmp_path: Path) -> None:
    """Wherever they stand in a block: copies of a photograph are common."""
    values = vectors(200)
    copies = [3, 4, 50, 51, 99, 120, 199]
    values[copies] = values[3]
    found = nearest(in_blocks(form(tmp_path / "out", values, names(200))), values[3] + 0.1, 5)
    assert found.rows.tolist() == copies[:5]
    assert len(set(found.cosines.tolist())) == 1


@pytest.mark.parametrize("width", [24, 512, 768])
def test_a_vector_scores_the_same_in_a_block_of_any_size(width: int) -> None:
    """To the bit: BLAS's product of a matrix and a vector does not give that."""
    query, vector = np.random.default_rng(0).standard_normal((2, width), np.float32)
    scores = [cosines(np.tile(vector, (rows, 1)), query) for rows in (1, 2, 3, 5, 8, 100, 1023)]
    assert len(set(np.concatenate(scores).tolist())) == 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("suffix", [".parquet", ".lance"])
def test_rows_without_a_vector_are_passed_over(dtype: str, suffix: str, tmp_path: Path) -> None:
    values, path = vectors(60, dtype), tmp_path / f"out{suffix}"
    missing = [0, 8, 9, 10, 11, 12, 13, 14, 30, 59]
    written = table(values, names(60), missing=missing)
    if suffix == ".lance":
        lance.write_dataset(written, path)
    else:
        pq.write_table(written, path, row_group_size=25)
    result = in_blocks(path)
    found = nearest(result, values[30], 100)
    assert set(found.rows.tolist()) == set(range(60)) - set(missing)
    assert (found.vectors, result.rows) == (50, 60)
    assert result.names(found.rows.tolist()) == [names(60)[row] for row in found.rows]
    assert nearest(result, values[31], 1).rows.tolist() == [31]


@given(arrays.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 40))))
def test_halves_are_widened_to_the_same_values(bits: Array) -> None:
    halves = bits.view(np.float16)
    np.testing.assert_array_equal(widened(halves), halves.astype(np.float32))


def test_every_half_there_is_is_widened_to_the_same_value() -> None:
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)][:, None]
    np.testing.assert_array_equal(widened(finite), finite.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(widened(finite)), np.signbit(finite))
    np.testing.assert_array_equal(widened(halves[:, None]), halves[:, None].astype(np.float32))


def test_the_cosine_with_a_zero_vector_is_zero_and_with_nan_is_none() -> None:
    block = np.array([[0, 0], [3, 4], [np.nan, 1], [np.inf, 1]], np.float32)
    np.testing.assert_array_equal(cosines(block, np.array([0, 1], np.float32)), [0, np.float32(0.8), np.nan, np.nan])


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e30, 1e38])
def test_the_cosine_does_not_depend_on_the_vectors_length(scale: float) -> None:
    block = vectors(20, seed=1)
    unit = vectors(1, seed=2)[0]
    unit /= np.linalg.norm(unit)
    block /= np.abs(block).max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cosines((block * np.float32(scale)).astype(np.float32), unit)
    np.testing.assert_allclose(found, cosines(block, unit), atol=1e-5)


def test_progress_counts_every_row_once(tmp_path: Path) -> None:
    done: list[int] = []
    nearest(in_blocks(as_shards(tmp_path / "out", vectors(211), names(211))), vectors(1)[0], 3, progress=done.append)
    assert sum(done) == 211
    assert len(done) > 3


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_a_table_of_another_program_is_searched_by_its_column(kind: pa.DataType, tmp_path: Path) -> None:
    """Its lists have no fixed size, some rows are null, and it says nothing of an encoder."""
    values = vectors(40).astype(np.float16)
    lists: list[Any] = [row.tolist() for row in values.astype(np.float64)]
    lists[0] = lists[17] = None
    columns = {"id": range(100, 140), "clip": pa.array(lists, pa.list_(pa.float64()))}
    written = pa.table(columns)
    written = written.set_column(1, "clip", written["clip"].cast(pa.list_(kind)))
    pq.write_table(written, tmp_path / "out.parquet", row_group_size=16)
    result = in_blocks(tmp_path / "out.parquet", column="clip")
    assert (result.origin, result.width) == (None, WIDTH)
    found = nearest(result, values[21], 38)
    assert result.names(found.rows.tolist()[:1]) == ["121"]
    assert set(found.rows.tolist()) == set(range(40)) - {0, 17}


def test_rows_without_a_name_are_numbers(tmp_path: Path) -> None:
    pq.write_table(table(vectors(5), names(5)).drop_columns("id"), tmp_path / "out.parquet")
    assert in_blocks(tmp_path / "out.parquet").names([3, 0]) == ["row 3", "row 0"]


def test_names_and_metadata_need_not_be_utf8(tmp_path: Path) -> None:
    """Of another program's table."""
    odd = pa.array([b"caf\xe9", b"a"]).view(pa.string())
    given = table(vectors(2), names(2)).set_column(0, "id", odd).replace_schema_metadata({b"\xff": b"\xfe"})
    pq.write_table(given, tmp_path / "out.parquet")
    result = in_blocks(tmp_path / "out.parquet")
    assert (result.origin, result.names([0, 1])) == (None, ["caf\\xe9", "a"])


def refusal(path: Path, *, column: str = "pooled") -> str:
    """What is said when it is opened and read."""
    with pytest.raises(BulkError) as refused:
        read(opened(path, column=column))
    return str(refused.value)


def read(result: Result) -> None:
    nearest(result, np.ones(result.width, np.float32), 1)


def test_what_is_not_there_or_not_ours_is_said(tmp_path: Path) -> None:
    assert refusal(tmp_path / "out.npy").endswith("out.npy is not there.")
    (tmp_path / "late.npy.parts").mkdir()
    assert "late.npy is not finished: the `visiontower embed` that began it" in refusal(tmp_path / "late.npy")
    (tmp_path / "images").mkdir()
    assert f"visiontower embed {tmp_path / 'images'} -o photos.parquet" in refusal(tmp_path / "images")
    (tmp_path / "out.csv").write_text("1,2")
    os.mkfifo(tmp_path / "pipe.parquet")
    for name in ("out.csv", "pipe.parquet"):
        assert "nothing that `visiontower embed` writes: .parquet, .npy, .safetensors" in refusal(tmp_path / name)


@each_form
@pytest.mark.parametrize("share", [0.0, 0.002, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_said(form: Form, share: float, tmp_path: Path) -> None:
    path = form(tmp_path / "out", vectors(211), names(211))
    parts = {as_shards: "part-00002.parquet", as_lance: "_versions/*.manifest"}
    file = next(path.glob(parts[form])) if form in parts else path
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    said = refusal(path)
    assert said.startswith(f"{path if form is as_lance else file} cannot be read: ")
    assert said.endswith("copy or write it again.")


def test_a_damaged_row_group_is_said(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "out", vectors(211), names(211))
    written = bytearray(path.read_bytes())
    written[len(written) // 2 : len(written) // 2 + 2000] = bytes(2000)
    path.write_bytes(written)
    assert refusal(path).startswith(f"{path} cannot be read: ")


def test_a_damaged_header_is_said(tmp_path: Path) -> None:
    """NumPy reads it as Python, whose tokens have errors of their own."""
    path = as_npy(tmp_path / "out", vectors(9), names(9))
    path.write_bytes(path.read_bytes().replace(b"}", b"(", 1))
    assert refusal(path).startswith(f"{path} cannot be read: ")


def test_tokens_alone_are_refused_with_advice(tmp_path: Path) -> None:
    tokens = np.zeros((2, 3, 4), np.float32)
    np.save(tmp_path / "out.npy", tokens)
    (tmp_path / "out.npy.json").write_text(json.dumps({**ABOUT, "output": "tokens", "ids": names(2)}))
    save_file({"tokens": tokens}, tmp_path / "out.safetensors", {"ids": json.dumps(names(2))})
    pq.write_table(pa.table({"path": names(2), "tokens": tokens.tolist()}), tmp_path / "out.parquet")
    lance.write_dataset(pa.table({"id": names(2), "tokens": tokens.tolist()}), tmp_path / "out.lance")
    for suffix in (".npy", ".safetensors", ".parquet", ".lance"):
        assert "write it again with --output pooled" in refusal(tmp_path / f"out{suffix}")


def test_an_array_without_its_paths_is_refused(tmp_path: Path) -> None:
    path = as_npy(tmp_path / "out", vectors(9), names(9))
    neighbour = tmp_path / "out.npy.json"
    neighbour.write_text(json.dumps({**ABOUT, "ids": names(8)}))
    assert "9 rows and 8 ids" in refusal(path)
    neighbour.write_text("{")
    assert refusal(path).startswith(f"{neighbour} cannot be read")
    neighbour.unlink()
    assert refusal(path).startswith(f"{neighbour} is not there.")


@pytest.mark.parametrize("ids", [7, [1, 2, 3], "abc", None])
def test_ids_that_are_no_names_are_refused(ids: object, tmp_path: Path) -> None:
    path = as_npy(tmp_path / "x.npy", vectors(3), names(3))
    (tmp_path / "x.npy.json").write_text(json.dumps({"ids": ids}))
    assert "its ids are no list of names" in refusal(path)


def test_a_folder_of_a_run_over_nothing_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "_run.json").write_text("{}")
    assert "has no rows" in refusal(tmp_path)


def test_tables_and_tensors_of_other_programs_are_refused_by_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"name": ["a"], "size": [3]}), path)
    assert "no column 'pooled'. It has: name, size." in refusal(path)
    assert "The column 'size' of " in refusal(path, column="size")
    pq.write_table(pa.table({"pooled": [[1.0, 2.0], [1.0]]}), path)
    assert refusal(path).startswith(f"{path} cannot be read: ")
    pq.write_table(table(vectors(0), []), path)
    assert refusal(path) == f"{path} has no vectors."
    weights = tmp_path / "weights.safetensors"
    save_file({"pooled": vectors(3)}, weights)
    assert "is of another program" in refusal(weights)
    np.save(tmp_path / "out.npy", np.arange(6).reshape(2, 3))
    (tmp_path / "out.npy.json").write_text(json.dumps({"ids": names(2)}))
    assert "holds int64 [2, 3]" in refusal(tmp_path / "out.npy")


def test_shards_of_different_runs_are_refused_by_the_difference(tmp_path: Path) -> None:
    for number, revision in enumerate(("one", "two")):
        shard = table(vectors(4), names(4), about={**ABOUT, "revision": revision})
        pq.write_table(shard, tmp_path / f"part-{number:05}.parquet")
    assert "part-00001.parquet are of different runs: revision one and two." in refusal(tmp_path)
    pq.write_table(
        table(vectors(4)[:, :5], names(4), about={**ABOUT, "revision": "one"}), tmp_path / "part-00001.parquet"
    )
    assert "different runs: vectors of 24 numbers and of 5." in refusal(tmp_path)
