"""safetensors: the arrays of the good rows as tensors."""

import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from service.bulk.resume import Manifest, beside
from service.bulk.rows import Rows
from service.bulk.sinks.ledger import ledger
from service.bulk.sinks.one_file import OneFile
from service.bulk.sinks.sink import File

MAX_HEADER_BYTES = 95_000_000
"""safetensors readers refuse a header over 100 MB, and all ids are in it."""
_DTYPES = {"float32": "F32", "float16": "F16"}


class SafetensorsFile(OneFile):
    """Tensors `tokens` [N, T, D] and `pooled` [N, D]; metadata `ids` is a JSON list, the rest the run's parameters."""

    most_ids: ClassVar[int | None] = MAX_HEADER_BYTES

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield ledger(beside(self.out, ".errors.jsonl"), rows)
        yield self.out, partial(_write_safetensors, rows=rows) if rows.good else None


def _write_safetensors(path: Path, *, rows: Rows) -> None:
    """By hand because the library wants every tensor in memory; the format is its length, a JSON header, the bytes."""
    about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in rows.about.items()}
    header: dict[str, object] = {"__metadata__": {**about, "ids": json.dumps(list(rows.ids()))}}
    begin = 0
    dtype = np.dtype(rows.columns.dtype)
    for name, shape in rows.columns.shapes.items():
        full = (rows.good, *shape)
        end = begin + int(np.prod(full, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype.name], "shape": full, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the bytes after it begin aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in rows.columns.shapes:
            for block in rows.blocks(name):
                file.write(np.ascontiguousarray(block).data)
