"""Which sink a name on the command line means, and how large its shards are."""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Literal, TypeAlias

from service.bulk.errors import BulkError
from service.bulk.items import Modality
from service.bulk.sinks.clip_retrieval import ClipRetrieval
from service.bulk.sinks.lance import LanceDataset
from service.bulk.sinks.npy import NpyFile
from service.bulk.sinks.parquet import ParquetFile, ParquetFolder
from service.bulk.sinks.safetensors import SafetensorsFile
from service.bulk.sinks.sink import Sink

Layout: TypeAlias = Literal["auto", "clip-retrieval"]

_SHARD_BYTES = 256 * 1024 * 1024
_MOST_SHARD_ROWS = 262_144


FILES: dict[str, type[ParquetFile | NpyFile | SafetensorsFile | LanceDataset]] = {
    ".parquet": ParquetFile,
    ".npy": NpyFile,
    ".safetensors": SafetensorsFile,
    ".lance": LanceDataset,
}


def sink_of(
    out: Path,
    *,
    layout: Layout = "auto",
    arrays: Sequence[str],
    carried: Sequence[str] = (),
    modalities: Set[Modality] = frozenset({"image"}),
    is_folder: bool = False,
) -> Sink:
    """By the suffix; without one, a folder. is_folder: so too with one, but .lance, which is a folder anyway.

    Raises BulkError if it has no place for the arrays, the carried columns or the modalities, or needs a library that
    is not installed.
    """
    sink: Sink
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise BulkError(f"{out} is a pipe or a device: a result is a file or a folder.")
    if layout == "clip-retrieval":
        sink = ClipRetrieval(out, modalities)
    elif out.suffix != ".lance" and (is_folder or out.is_dir() or not out.suffix):
        sink = ParquetFolder(out)
    elif out.suffix in FILES:
        sink = FILES[out.suffix](out)
    else:
        raise BulkError(
            f"{out} must end in {', '.join(FILES)}, or in / for a folder of .parquet: the suffix chooses the format."
        )
    if carried and isinstance(sink, NpyFile | SafetensorsFile):
        raise BulkError(
            f"{out} has no place for the columns {', '.join(carried)}: write .parquet, .lance or a folder, "
            "or leave --columns out."
        )
    sink.require(arrays)
    return sink


def shard_rows(row_bytes: int, *, batch_size: int) -> int:
    """Rows of a shard of about 256 MiB, a multiple of the batch size."""
    rows = min(_MOST_SHARD_ROWS, _SHARD_BYTES // row_bytes)
    return max(1, rows // batch_size) * batch_size
