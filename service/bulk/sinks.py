"""Finished bulk results as .safetensors, .npy or .parquet; one part in memory at a time, never the whole output."""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.resume import Array, BulkError, Part, Parts, beside, write_whole

_MAX_HEADER_BYTES = 95_000_000
"""safetensors readers refuse a header over 100 MB, and all paths are in it."""

GRID = "grid"
"""Each row's (rows, cols), an array of the parts beside the tokens and pooled."""

_GROUP_BYTES = 64 * 1024 * 1024
_MAX_GROUP_ROWS = 65_536
"""A Parquet row group is what a reader takes at a time."""

_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True)
class Rows:
    """What a run gave. shapes: name -> shape of one image's row; about: the run's parameters, for the metadata."""

    parts: Parts
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    about: Mapping[str, object]

    @property
    def paths(self) -> list[str]:
        """The path of each row, in order."""
        return [self.parts.files[index] for index in self.parts.rows]


def write_safetensors(path: Path, rows: Rows) -> None:
    """Tensors `tokens` [N, T, D] and `pooled` [N, D]; metadata `paths` is a JSON list, the rest the run's parameters.

    By hand because the library wants every tensor in memory; the format is its length, a JSON header, the bytes.
    """
    about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in rows.about.items()}
    header: dict[str, object] = {"__metadata__": {**about, "paths": json.dumps(rows.paths)}}
    begin = 0
    for name, shape in rows.shapes.items():
        full = (len(rows.parts.rows), *shape)
        end = begin + int(np.prod(full, dtype=np.int64)) * np.dtype(rows.dtype).itemsize
        header[name] = {"dtype": _SAFETENSORS_DTYPES[rows.dtype], "shape": full, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the bytes after it begin aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in rows.shapes:
            for part in rows.parts:
                for block in part.arrays.get(name, []):
                    file.write(np.ascontiguousarray(block).data)


def write_npy(path: Path, rows: Rows) -> None:
    """One array [N, ...]; which file each row is, and the run's parameters, stand in PATH.json."""
    ((name, shape),) = rows.shapes.items()
    array = np.lib.format.open_memmap(path, mode="w+", dtype=rows.dtype, shape=(len(rows.parts.rows), *shape))
    at = 0
    for part in rows.parts:
        for block in part.arrays.get(name, []):
            array[at : at + len(block)] = block
            at += len(block)
    array.flush()


def write_parquet(path: Path, rows: Rows) -> None:
    """Columns path, grid_rows, grid_cols, tokens (list of lists), pooled (list); the run's parameters as metadata."""
    types = {name: _list_type(rows.dtype, shape) for name, shape in rows.shapes.items()}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in rows.about.items()}
    columns = [("path", pa.string()), ("grid_rows", pa.int32()), ("grid_cols", pa.int32()), *types.items()]
    schema = pa.schema(columns, metadata=metadata)
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["path"]) as writer:
        for group in _row_groups((_table(part, rows, schema) for part in rows.parts if part.rows), _group_rows(rows)):
            writer.write_table(group, row_group_size=len(group))


def _table(part: Part, rows: Rows, schema: pa.Schema) -> pa.Table:
    arrays = [
        pa.array([rows.parts.files[index] for index in part.rows], pa.string()),
        *(pa.array(np.ascontiguousarray(side)) for side in part.arrays[GRID][0].T),
        *(_lists(part.arrays[name][0], schema.field(name).type) for name in rows.shapes),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _group_rows(rows: Rows) -> int:
    row_bytes = sum(int(np.prod(shape)) for shape in rows.shapes.values()) * np.dtype(rows.dtype).itemsize
    return max(1, min(_MAX_GROUP_ROWS, _GROUP_BYTES // row_bytes))


def _row_groups(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Tables of `size` rows and a last smaller one: where a run was interrupted must not show in its file."""
    held: pa.Table | None = None
    for table in tables:
        held = table if held is None else pa.concat_tables([held, table])
        while len(held) >= size:
            yield held.slice(0, size).combine_chunks()
            held = held.slice(size)
    if held is not None and len(held):
        yield held.combine_chunks()


def _list_type(dtype: str, shape: Sequence[int]) -> pa.DataType:
    inner = pa.float16() if dtype == "float16" else pa.float32()
    for width in reversed(shape):
        inner = pa.list_(inner, width)
    return inner


def _lists(block: Array, kind: pa.DataType) -> pa.Array:
    """[n, ...] as nested fixed-size lists, no copy."""
    array = pa.array(block.reshape(-1))
    for width in reversed(block.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, width)
    return array.cast(kind)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".safetensors": write_safetensors,
    ".npy": write_npy,
    ".parquet": write_parquet,
}


def check(out: Path, *, names: Sequence[str], files: Sequence[str]) -> None:
    """Before any work: can `out` hold these arrays of these files? Raises BulkError if not."""
    if out.suffix not in WRITERS:
        raise BulkError(f"{out} must end in {', '.join(WRITERS)}: the suffix chooses the format.")
    if out.suffix == ".npy" and len(names) > 1:
        raise BulkError(
            f"{out} holds one array: choose --output {' or '.join(names)}, or write .safetensors or .parquet."
        )
    if out.suffix == ".safetensors" and len(json.dumps(json.dumps(list(files)))) > _MAX_HEADER_BYTES:
        raise BulkError(
            f"{out} would need a header over {_MAX_HEADER_BYTES:,} bytes for {len(files):,} paths, "
            "more than readers accept: write .parquet or .npy."
        )


def export(out: Path, rows: Rows) -> None:
    """Write `out` by its suffix, put in place whole."""
    if out.suffix == ".npy":
        text = json.dumps({**rows.about, "paths": rows.paths})
        write_whole(beside(out, ".json"), lambda path: path.write_text(text))
    write_whole(out, lambda path: WRITERS[out.suffix](path, rows))
