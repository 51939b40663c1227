"""Which kind of result a path is."""

from pathlib import Path

from service.bulk.errors import BulkError
from service.bulk.results.arrays import of_npy, of_safetensors
from service.bulk.results.lance import of_lance
from service.bulk.results.parquet import of_tables
from service.bulk.results.result import POOLED, Result
from service.bulk.resume import RUN, UNFINISHED, beside
from service.bulk.sinks import FILES

SHARDS = "part-*.parquet"

_BLOCK_NUMBERS = 2**19
"""2 MiB in float32, which a core's cache holds."""


def opened(path: Path, *, column: str = POOLED, block_numbers: int = _BLOCK_NUMBERS) -> Result:
    """What `embed` wrote. column: of a table, where the vectors are. block_numbers: at most in a block, or one vector.

    Raises BulkError if it is not there, cannot be read, or has no such vectors.
    """
    if path.suffix == ".lance" and path.exists():
        return of_lance(path, column=column, block_numbers=block_numbers)
    if path.is_dir():
        shards = sorted(path.glob(SHARDS))
        if not shards and (path / RUN).exists():
            raise BulkError(f"{path} has no rows.")
        if not shards:
            raise BulkError(
                f"{path} has no {SHARDS}. A folder of images is embedded first: "
                f"visiontower embed {path} -o photos.parquet."
            )
        return of_tables(path, shards, column=column, block_numbers=block_numbers)
    if not path.exists():
        if beside(path, UNFINISHED).exists():
            raise BulkError(f"{path} is not finished: the `visiontower embed` that began it continues it.")
        raise BulkError(f"{path} is not there.")
    match path.suffix if path.is_file() else "":
        case ".parquet":
            return of_tables(path, [path], column=column, block_numbers=block_numbers)
        case ".npy":
            return of_npy(path, block_numbers)
        case ".safetensors":
            return of_safetensors(path, block_numbers)
    raise BulkError(f"{path} is nothing that `visiontower embed` writes: {', '.join(FILES)}, or a folder of {SHARDS}.")
