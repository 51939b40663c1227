"""What `visiontower embed` wrote, read in blocks: .parquet, a folder of such shards, .npy or .safetensors."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.contract.values import ImageSize
from service.bulk.errors import BulkError
from service.bulk.resume import beside
from service.bulk.rows import Array
from service.bulk.sinks import FILES
from service.sizes import parse_image_size

SHARDS = "part-*.parquet"
POOLED = "pooled"

_BLOCK_NUMBERS = 2**19
"""2 MiB in float32, which a core's cache holds."""
_STRETCH_BLOCKS = 16
_READ_AHEAD_BYTES = 1024 * 1024
_NAMES = ("id", "path")
"""Columns that say what a row is, the first that is there."""
_TENSORS = {"F16": np.float16, "F32": np.float32}


@dataclass(frozen=True)
class Origin:
    """How the vectors were made. revision: of the weights. resolution: of the images; None for the native one."""

    model: str
    revision: str
    resolution: ImageSize | None
    runtime: str
    exact_pixels: bool

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Origin | None":
        """From a run's parameters in a file's metadata. None if they are not all there: another program wrote it."""
        try:
            return cls(
                model=str(about["model"]),
                revision=str(about["revision"]),
                resolution=parse_image_size(about["resolution"]),
                runtime=str(about["runtime"]),
                exact_pixels=str(about["exact_pixels"]).lower() == "true",
            )
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Stretch:
    """Consecutive rows. blocks: reads them in order as [n, width]; a row without a vector is NaN."""

    rows: int
    blocks: Callable[[], Iterator[Array]]


@dataclass(frozen=True)
class Result:
    """Vectors in a file or a folder. Nothing of them is in memory.

    origin: None if the file does not say. names: of the rows at these places, what embed was given for each.
    """

    path: Path
    origin: Origin | None
    width: int
    stretches: Sequence[Stretch]
    names: Callable[[Sequence[int]], list[str]]

    @property
    def rows(self) -> int:
        """All, also those without a vector."""
        return sum(stretch.rows for stretch in self.stretches)


def opened(path: Path, *, column: str = POOLED, block_numbers: int = _BLOCK_NUMBERS) -> Result:
    """What `embed` wrote. column: of a table, where the vectors are. block_numbers: at most in a block, or one vector.

    Raises BulkError if it is not there, cannot be read, or has no such vectors.
    """
    if path.is_dir():
        shards = sorted(path.glob(SHARDS))
        if not shards:
            raise BulkError(
                f"{path} has no {SHARDS}. A folder of images is embedded first: "
                f"visiontower embed {path} -o photos.parquet."
            )
        return _of_tables(path, shards, column=column, block_numbers=block_numbers)
    if not path.exists():
        if beside(path, ".parts").exists():
            raise BulkError(f"{path} is not finished: the `visiontower embed` that began it continues it.")
        raise BulkError(f"{path} is not there.")
    match path.suffix:
        case ".parquet":
            return _of_tables(path, [path], column=column, block_numbers=block_numbers)
        case ".npy":
            return _of_npy(path, block_numbers)
        case ".safetensors":
            return _of_safetensors(path, block_numbers)
    raise BulkError(f"{path} is nothing that `visiontower embed` writes: {', '.join(FILES)}, or a folder of {SHARDS}.")


def _of_npy(path: Path, block_numbers: int) -> Result:
    neighbour = beside(path, ".json")
    try:
        about = json.loads(neighbour.read_text())
        ids = about["ids"]
    except FileNotFoundError as error:
        raise BulkError(f"{neighbour} is not there. It says which item each row of {path.name} is.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(neighbour, error) from error
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    if about.get("output") == "tokens":
        raise _tokens_only(path)
    return _of_array(path, vectors, ids, Origin.of(about), block_numbers)


def _of_safetensors(path: Path, block_numbers: int) -> Result:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        about = header.get("__metadata__", {})
        tensor = header.get(POOLED)
        if tensor is None and "tokens" in header:
            raise _tokens_only(path)
        if tensor is None or tensor["dtype"] not in _TENSORS or "ids" not in about:
            raise BulkError(
                f"{path} is of another program: what `visiontower embed` writes has a tensor '{POOLED}' in "
                "F16 or F32, and the metadata 'ids'."
            )
        ids, shape = json.loads(about["ids"]), tuple(tensor["shape"])
        begin = 8 + length + tensor["data_offsets"][0]
        vectors = np.memmap(path, _TENSORS[tensor["dtype"]], "r", offset=begin, shape=shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise _unreadable(path, error) from error
    return _of_array(path, vectors, ids, Origin.of(about), block_numbers)


def _of_array(path: Path, vectors: Array, ids: Sequence[str], origin: Origin | None, block_numbers: int) -> Result:
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise BulkError(
            f"{path} holds {vectors.dtype} {list(vectors.shape)}; vectors are float16 or float32 [N, width]."
        )
    if len(ids) != len(vectors):
        raise BulkError(f"{path} has {len(vectors):,} rows and {len(ids):,} ids: they are not of the same run.")
    rows, width = vectors.shape
    if not vectors.size:
        raise BulkError(f"{path} has no vectors.")
    block = max(1, block_numbers // width)
    stretch = _STRETCH_BLOCKS * block
    parts = [vectors[start : start + stretch] for start in range(0, rows, stretch)]
    stretches = [Stretch(len(part), partial(_slices, part, block)) for part in parts]
    return Result(path, origin, width, stretches, lambda places: [ids[place] for place in places])


def _slices(part: Array, rows: int) -> Iterator[Array]:
    return (part[start : start + rows] for start in range(0, len(part), rows))


@dataclass(frozen=True)
class _Group:
    """A row group of a Parquet file."""

    path: Path
    metadata: pq.FileMetaData
    number: int
    column: str
    width: int
    block_numbers: int

    @property
    def rows(self) -> int:
        rows: int = self.metadata.row_group(self.number).num_rows
        return rows

    def blocks(self) -> Iterator[Array]:
        """Raises BulkError."""
        with self._open() as file:
            block = max(1, self.block_numbers // self.width)
            batches = file.iter_batches(block, row_groups=[self.number], columns=[self.column])
            try:
                for batch in batches:
                    yield _vectors(batch.column(0), self.width)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(self.path, error) from error

    def names(self) -> list[str] | None:
        """Of its rows; None if no column has them. Raises BulkError."""
        with self._open() as file:
            column = next((name for name in _NAMES if name in file.schema_arrow.names), None)
            if column is None:
                return None
            try:
                return [str(name) for name in file.read_row_group(self.number, columns=[column])[column].to_pylist()]
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(self.path, error) from error

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, metadata=self.metadata, buffer_size=_READ_AHEAD_BYTES, pre_buffer=False)


def _of_tables(path: Path, files: Sequence[Path], *, column: str, block_numbers: int) -> Result:
    groups: list[_Group] = []
    origins: dict[Origin | None, Path] = {}
    widths: dict[int, Path] = {}
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                metadata, schema = table.metadata, table.schema_arrow
                width = _width(table, file, column)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, error) from error
        about = {key.decode(): value.decode(errors="replace") for key, value in (schema.metadata or {}).items()}
        origins.setdefault(Origin.of(about), file)
        if width:
            widths.setdefault(width, file)
            numbers = range(metadata.num_row_groups)
            groups += [_Group(file, metadata, number, column, width, block_numbers) for number in numbers]
    if not sum(group.rows for group in groups):
        raise BulkError(f"{path} has no vectors.")
    if len(origins) > 1 or len(widths) > 1:
        one, other = list(origins.values() if len(origins) > 1 else widths.values())[:2]
        raise BulkError(f"{one} and {other.name} are of different runs: {_differences(list(origins), list(widths))}.")
    stretches = [Stretch(group.rows, group.blocks) for group in groups]
    return Result(path, next(iter(origins)), next(iter(widths)), stretches, partial(_names, groups))


def _width(table: pq.ParquetFile, path: Path, column: str) -> int | None:
    """Of the vectors; None if there is none to tell it. Raises BulkError if the column does not hold vectors."""
    schema = table.schema_arrow
    if column not in schema.names:
        if column == POOLED and "tokens" in schema.names:
            raise _tokens_only(path)
        raise BulkError(f"{path} has no column '{column}'. It has: {', '.join(schema.names)}.")
    kind = schema.field(column).type
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise BulkError(f"The column '{column}' of {path} is {kind}; vectors are lists of float16 or float32.")
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    batches = table.iter_batches(64, columns=[column])  # lists of other programs may have any length: the first tells
    return next((len(row) for batch in batches for row in batch.column(0) if row.is_valid), None)


def _vectors(column: pa.Array, width: int) -> Array:
    """[n, width]. Raises ArrowInvalid if a row has another length."""
    column = column.cast(pa.list_(column.type.value_type, width))
    values: Array = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)  # of the rows that are not null
    if not column.null_count:
        return values
    everything = np.full((len(column), width), np.nan, values.dtype)
    everything[column.is_valid().to_numpy(zero_copy_only=False)] = values
    return everything


def _names(groups: Sequence[_Group], places: Sequence[int]) -> list[str]:
    """Reads those groups alone that hold one of the rows."""
    ends = np.cumsum([group.rows for group in groups])
    inside = np.searchsorted(ends, places, side="right")
    held = {number: groups[number].names() for number in set(inside.tolist())}
    names = []
    for place, number in zip(places, inside.tolist(), strict=True):
        group = held[number]
        names.append(f"row {place}" if group is None else group[place - int(ends[number]) + groups[number].rows])
    return names


def _differences(origins: Sequence[Origin | None], widths: Sequence[int]) -> str:
    if len(origins) == 1:
        return f"vectors of {widths[0]} numbers and of {widths[1]}"
    one, other = origins[:2]
    if one is None or other is None:
        return "one says which encoder it is of, the other does not"
    return "; ".join(
        f"{each.name} {getattr(one, each.name)} and {getattr(other, each.name)}"
        for each in fields(Origin)
        if getattr(one, each.name) != getattr(other, each.name)
    )


def _tokens_only(path: Path) -> BulkError:
    return BulkError(
        f"{path} holds tokens only; pooled vectors are searched: write it again with --output pooled, or both."
    )


def _unreadable(path: Path, error: Exception) -> BulkError:
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return BulkError(
        f"{path} cannot be read: {reason}. It is cut short, or no {path.suffix} file: copy or write it again."
    )
