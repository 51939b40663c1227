"""Results that are one array: .npy and .safetensors, mapped into memory."""

import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tokenize import TokenError

import numpy as np

from service.bulk.errors import BulkError
from service.bulk.results.result import POOLED, STRETCH_BLOCKS, Origin, Result, Stretch, tokens_only, unreadable
from service.bulk.resume import beside
from service.bulk.rows import Array

_TENSORS = {"F16": np.float16, "F32": np.float32}


def of_npy(path: Path, block_numbers: int) -> Result:
    """Its ids are in the file beside it. Raises BulkError."""
    neighbour = beside(path, ".json")
    try:
        about = json.loads(neighbour.read_text())
        ids = about["ids"]
    except FileNotFoundError as error:
        raise BulkError(f"{neighbour} is not there. It says which item each row of {path.name} is.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(neighbour, error) from error
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TokenError) as error:  # its header is Python's syntax
        raise unreadable(path, error) from error
    if about.get("output") == "tokens":
        raise tokens_only(path)
    return _of_array(path, vectors, ids, Origin.of(about), block_numbers)


def of_safetensors(path: Path, block_numbers: int) -> Result:
    """Its ids are in its header. Raises BulkError."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        about = header.get("__metadata__", {})
        tensor = header.get(POOLED)
        if tensor is None and "tokens" in header:
            raise tokens_only(path)
        if tensor is None or tensor["dtype"] not in _TENSORS or "ids" not in about:
            raise BulkError(
                f"{path} is of another program: what `visiontower embed` writes has a tensor '{POOLED}' in "
                "F16 or F32, and the metadata 'ids'."
            )
        ids, shape = json.loads(about["ids"]), tuple(tensor["shape"])
        begin = 8 + length + tensor["data_offsets"][0]
        vectors = np.memmap(path, _TENSORS[tensor["dtype"]], "r", offset=begin, shape=shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise unreadable(path, error) from error
    return _of_array(path, vectors, ids, Origin.of(about), block_numbers)


def _of_array(path: Path, vectors: Array, ids: object, origin: Origin | None, block_numbers: int) -> Result:
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise BulkError(
            f"{path} holds {vectors.dtype} {list(vectors.shape)}; vectors are float16 or float32 [N, width]."
        )
    if not (isinstance(ids, list) and all(isinstance(each, str) for each in ids)):
        raise BulkError(f"{path} is of another program: its ids are no list of names.")
    if len(ids) != len(vectors):
        raise BulkError(f"{path} has {len(vectors):,} rows and {len(ids):,} ids: they are not of the same run.")
    rows, width = vectors.shape
    if not vectors.size:
        raise BulkError(f"{path} has no vectors.")
    block = max(1, block_numbers // width)
    stretch = STRETCH_BLOCKS * block
    parts = [vectors[start : start + stretch] for start in range(0, rows, stretch)]
    stretches = [Stretch(len(part), partial(_slices, part, block)) for part in parts]
    return Result(path, origin, width, stretches, lambda places: [ids[place] for place in places])


def _slices(part: Array, rows: int) -> Iterator[Array]:
    return (part[start : start + rows] for start in range(0, len(part), rows))
