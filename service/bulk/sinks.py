"""How a result lies on disk: one file, or a folder of shards. Each file is put in place whole.

A shard may be of several files: then the last to be put in place says that it is there.
"""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.errors import BulkError
from service.bulk.resume import MANIFEST, Manifest, beside, write_whole
from service.bulk.rows import Array, Rows

Layout: TypeAlias = Literal["auto", "clip-retrieval"]
File: TypeAlias = tuple[Path, Callable[[Path], object] | None]
"""A file of a shard and what fills it; None: it is not there."""

MAX_HEADER_BYTES = 95_000_000
"""safetensors readers refuse a header over 100 MB, and all ids are in it."""
_SHARD_BYTES = 256 * 1024 * 1024
_MOST_SHARD_ROWS = 262_144
_KEY = "visiontower"
"""The key of Parquet metadata that has the manifest."""
_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True)
class Counts:
    """The rows of a finished shard, and how many of them have no arrays."""

    rows: int
    failed: int


class Sink(Protocol):
    """Where a result goes.

    out: as it was asked for. work: the folder of what is unfinished. is_sharded: the result is shards of some rows;
    else it is one, without end. ledger: where items that failed stand, if the result has no row for them.
    most_ids: bytes that all ids may have, in JSON.
    """

    out: Path
    is_sharded: ClassVar[bool]
    most_ids: ClassVar[int | None]

    @property
    def ledger(self) -> Path | None:
        """Where items that failed stand; None if they have a row."""

    @property
    def work(self) -> Path:
        """The folder of what is unfinished."""

    def require(self, arrays: Sequence[str]) -> None:
        """Raises BulkError if it cannot hold these arrays."""

    def recorded(self) -> Manifest | None:
        """The run that has begun to write here, or has ended; None if there was none.

        Raises BulkError if something else is here.
        """

    def require_ours(self) -> None:
        """Raises BulkError if something is here that `clear` would have to remove, and no run of ours wrote."""

    def record(self, manifest: Manifest) -> None:
        """Write down whose result it is."""

    def finished(self, number: int) -> Counts | None:
        """Of the shard of this number; None if it is not there whole. One file is written at the end, so never."""

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """What the shard is made of, the last file last."""

    def clear(self) -> None:
        """Remove all that earlier runs wrote, the last shard first, so that a run killed here still knows its own."""


def write(sink: Sink, number: int, rows: Rows, manifest: Manifest) -> None:
    """Put a shard in place. Raises BulkError if there is no room."""
    for path, fill in sink.files(number, rows, manifest):
        if fill is None:
            path.unlink(missing_ok=True)
        else:
            write_whole(path, fill, folder=sink.work)


class OneFile:
    """A single file; its unfinished run is in OUT.parts."""

    is_sharded: ClassVar[bool] = False
    most_ids: ClassVar[int | None] = None

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def work(self) -> Path:
        """As Sink.work."""
        return beside(self.out, ".parts")

    @property
    def ledger(self) -> Path | None:
        """As Sink.ledger."""
        return beside(self.out, ".errors.jsonl")

    def require(self, arrays: Sequence[str]) -> None:
        """As Sink.require."""
        pass

    def recorded(self) -> Manifest | None:
        """As Sink.recorded."""
        return Manifest.of_json(self._manifest.read_bytes()) if self._manifest.exists() else self._of_result()

    @property
    def _manifest(self) -> Path:
        return self.work / MANIFEST

    def _of_result(self) -> Manifest | None:
        if self.out.exists():
            raise BulkError(f"{self.out} exists already: --restart writes it anew.")
        return None

    def record(self, manifest: Manifest) -> None:
        """As Sink.record."""
        text = manifest.to_json()
        write_whole(self._manifest, lambda path: path.write_text(text), folder=self.work)

    def require_ours(self) -> None:
        """As Sink.require_ours. The result stays until the new one takes its place."""

    def whole(self, rows: int) -> Counts:
        """Of the result, which is there whole and has so many rows."""
        return Counts(rows, len(self.ledger.read_text().splitlines()) if self.ledger and self.ledger.exists() else 0)

    def finished(self, number: int) -> Counts | None:
        """As Sink.finished."""
        return None

    def clear(self) -> None:
        """The result stays until the new one takes its place."""
        self._manifest.unlink(missing_ok=True)
        for part in self.work.glob("*.arrow"):
            part.unlink()


class ParquetFile(OneFile):
    """Columns id, error, grid_rows, grid_cols, the carried ones, tokens (list of lists), pooled (list)."""

    @property
    def ledger(self) -> Path | None:
        """None: they have a row."""
        return None

    def _of_result(self) -> Manifest | None:
        if not self.out.exists():
            return None
        about = _metadata(self.out)
        if _KEY.encode() not in about:
            raise BulkError(f"{self.out} exists already: --restart writes it anew.")
        return Manifest.of_json(about[_KEY.encode()])

    def whole(self, rows: int) -> Counts:
        """Of the result."""
        return counts(self.out)

    def shards(self) -> list[Path]:
        """The files that are there."""
        return [self.out] if self.out.exists() else []

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield self.out, partial(_write_parquet, rows=rows, manifest=manifest.ended(rows=rows.total))


class NpyFile(OneFile):
    """One array [N, ...]; OUT.json has the ids of its rows and the run's parameters."""

    def require(self, arrays: Sequence[str]) -> None:
        """As Sink.require."""
        if len(arrays) > 1:
            raise BulkError(
                f"{self.out} holds one array: choose --output {' or '.join(arrays)}, "
                "or write .safetensors, .parquet or a folder."
            )

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield _errors(beside(self.out, ".errors.jsonl"), rows)
        if not rows.good:
            yield self.out, None
            yield beside(self.out, ".json"), None
        else:
            (name,) = rows.columns.shapes
            text = json.dumps({**rows.about, "ids": list(rows.ids())})
            yield beside(self.out, ".json"), lambda path: path.write_text(text)
            yield self.out, partial(_write_npy, name=name, rows=rows)


class SafetensorsFile(OneFile):
    """Tensors `tokens` [N, T, D] and `pooled` [N, D]; metadata `ids` is a JSON list, the rest the run's parameters."""

    most_ids: ClassVar[int | None] = MAX_HEADER_BYTES

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield _errors(beside(self.out, ".errors.jsonl"), rows)
        yield self.out, partial(_write_safetensors, rows=rows) if rows.good else None


class _Folder:
    """A folder of shards; its unfinished ones are in OUT/_unfinished. Readers skip names that begin with `_`."""

    is_sharded: ClassVar[bool] = True
    most_ids: ClassVar[int | None] = None
    _pattern: ClassVar[str]

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def work(self) -> Path:
        """As Sink.work."""
        return self.out / "_unfinished"

    @property
    def ledger(self) -> Path | None:
        """As Sink.ledger."""
        return self.out / "errors"

    @property
    def _manifest(self) -> Path:
        return self.out / "_run.json"

    def require(self, arrays: Sequence[str]) -> None:
        """As Sink.require."""
        if self.out.is_file():
            raise BulkError(f"{self.out} is a file, not a folder.")

    def recorded(self) -> Manifest | None:
        """As Sink.recorded."""
        self.require_ours()
        return Manifest.of_json(self._manifest.read_bytes()) if self._manifest.exists() else None

    def require_ours(self) -> None:
        """As Sink.require_ours."""
        if self._manifest.exists():
            return
        others = [path.name for path in self.out.glob("*") if not path.name.startswith("_")]
        if others:
            raise BulkError(f"{self.out} holds {sorted(others)[0]}, and no run: choose an empty folder or a new one.")

    def record(self, manifest: Manifest) -> None:
        """As Sink.record."""
        text = manifest.to_json()
        write_whole(self._manifest, lambda path: path.write_text(text), folder=self.work)

    def clear(self) -> None:
        """As Sink.clear."""
        for path in sorted(self.out.glob(self._pattern), reverse=True):
            path.unlink()
        for part in self.work.glob("*.arrow"):
            part.unlink()


class ParquetFolder(_Folder):
    """OUT/part-00000.parquet and so on, each as ParquetFile has it."""

    _pattern: ClassVar = "part-*.parquet"

    @property
    def ledger(self) -> Path | None:
        """None: they have a row."""
        return None

    def finished(self, number: int) -> Counts | None:
        """As Sink.finished."""
        path = self._shard(number)
        return counts(path) if path.exists() else None

    def shards(self) -> list[Path]:
        """The files that are there, in order."""
        return list(takewhile(Path.exists, map(self._shard, count())))

    def _shard(self, number: int) -> Path:
        return self.out / f"part-{number:05d}.parquet"

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield self._shard(number), partial(_write_parquet, rows=rows, manifest=None)


class ClipRetrieval(_Folder):
    """As clip-retrieval writes it, for autofaiss and its kin: good rows alone.

    OUT/img_emb/img_emb_0.npy [N, D] float16 of length 1, OUT/metadata/metadata_0.parquet (image_path, the carried
    columns), and OUT/errors/errors_0.jsonl where items failed.
    """

    _pattern: ClassVar = "*/*_[0-9]*.*"

    def require(self, arrays: Sequence[str]) -> None:
        """As Sink.require."""
        super().require(arrays)
        if list(arrays) != ["pooled"]:
            raise BulkError("The layout clip-retrieval holds pooled vectors: choose --output pooled.")

    def finished(self, number: int) -> Counts | None:
        """As Sink.finished."""
        vectors, errors = self._vectors(number), self._errors(number)
        if not vectors.exists():
            return None
        failed = len(errors.read_text().splitlines()) if errors.exists() else 0
        return Counts(len(np.load(vectors, mmap_mode="r")) + failed, failed)

    def _vectors(self, number: int) -> Path:
        return self.out / "img_emb" / f"img_emb_{number}.npy"

    def _errors(self, number: int) -> Path:
        return self.out / "errors" / f"errors_{number}.jsonl"

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield _errors(self._errors(number), rows)
        yield self.out / "metadata" / f"metadata_{number}.parquet", partial(_write_metadata, rows=rows)
        yield self._vectors(number), partial(_write_npy, name="pooled", rows=rows)


FILES: dict[str, type[ParquetFile | NpyFile | SafetensorsFile]] = {
    ".parquet": ParquetFile,
    ".npy": NpyFile,
    ".safetensors": SafetensorsFile,
}


def sink_of(out: Path, *, layout: Layout = "auto", arrays: Sequence[str], is_folder: bool = False) -> Sink:
    """By the suffix; without one, a folder. is_folder: whatever it is.

    Raises BulkError if it has no place for the arrays.
    """
    sink: ClipRetrieval | ParquetFolder | ParquetFile | NpyFile | SafetensorsFile
    if layout == "clip-retrieval":
        sink = ClipRetrieval(out)
    elif is_folder or out.is_dir() or not out.suffix:
        sink = ParquetFolder(out)
    elif out.suffix in FILES:
        sink = FILES[out.suffix](out)
    else:
        raise BulkError(
            f"{out} must end in {', '.join(FILES)}, or in / for a folder of .parquet: the suffix chooses the format."
        )
    sink.require(arrays)
    return sink


def shard_rows(row_bytes: int, *, batch_size: int) -> int:
    """Rows of a shard of about 256 MiB, a multiple of the batch size."""
    rows = min(_MOST_SHARD_ROWS, _SHARD_BYTES // row_bytes)
    return max(1, rows // batch_size) * batch_size


def read_rows(path: Path) -> Iterator[pa.Table]:
    """The rows of a Parquet file of ours, a group at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def counts(path: Path) -> Counts:
    """Of a Parquet file of ours."""
    with pq.ParquetFile(path) as file:
        errors = file.read(["error"])["error"]
    return Counts(len(errors), len(errors) - errors.null_count)


def _metadata(path: Path) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid as error:
        raise BulkError(f"{path} exists already, and is no Parquet: --restart writes it anew.") from error


def _errors(path: Path, rows: Rows) -> File:
    """One object an item that failed."""

    def fill(new: Path) -> None:
        with new.open("w") as file:
            for item, error in rows.failures():
                file.write(json.dumps({"id": item, "error": error}) + "\n")

    return path, fill if rows.failed else None


def _write_parquet(path: Path, *, rows: Rows, manifest: Manifest | None) -> None:
    about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in rows.about.items()}
    if manifest is not None:
        about[_KEY] = manifest.to_json()
    schema = rows.columns.schema.with_metadata(about)
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=rows.columns.plain) as writer:
        for group in rows.groups():
            writer.write_table(group.cast(schema), row_group_size=len(group))


def _write_metadata(path: Path, *, rows: Rows) -> None:
    carried = rows.columns.carried.names
    schema = pa.schema([("image_path", pa.string()), *rows.columns.carried])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in rows.groups():
            good = group.filter(group["error"].is_null()).select(["id", *carried])
            writer.write_table(good.rename_columns(schema.names).combine_chunks())


def _write_npy(path: Path, *, name: str, rows: Rows) -> None:
    """By plain writes, which fail where the disk is full; a mapped file would end the process."""
    about = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(rows.columns.dtype)),
        "fortran_order": False,
        "shape": (rows.good, *rows.columns.shapes[name]),
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, about)
        for block in rows.blocks(name):
            file.write(_bytes(block))


def _write_safetensors(path: Path, *, rows: Rows) -> None:
    """By hand because the library wants every tensor in memory; the format is its length, a JSON header, the bytes."""
    about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in rows.about.items()}
    header: dict[str, object] = {"__metadata__": {**about, "ids": json.dumps(list(rows.ids()))}}
    begin = 0
    dtype = np.dtype(rows.columns.dtype)
    for name, shape in rows.columns.shapes.items():
        full = (rows.good, *shape)
        end = begin + int(np.prod(full, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_DTYPES[dtype.name], "shape": full, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the bytes after it begin aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in rows.columns.shapes:
            for block in rows.blocks(name):
                file.write(_bytes(block))


def _bytes(block: Array) -> memoryview:
    return np.ascontiguousarray(block).data
