"""NumPy's .npy: one array of the good rows."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from service.bulk.errors import BulkError
from service.bulk.resume import Manifest, beside
from service.bulk.rows import Rows
from service.bulk.sinks.ledger import ledger
from service.bulk.sinks.one_file import OneFile
from service.bulk.sinks.sink import File


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
        yield ledger(beside(self.out, ".errors.jsonl"), rows)
        if not rows.good:
            yield self.out, None
            yield beside(self.out, ".json"), None
        else:
            (name,) = rows.columns.shapes
            text = json.dumps({**rows.about, "ids": list(rows.ids())})
            yield beside(self.out, ".json"), lambda path: path.write_text(text)
            yield self.out, partial(write_npy, name=name, rows=rows)


def write_npy(path: Path, *, name: str, rows: Rows) -> None:
    """By plain writes, which fail where the disk is full; a mapped file would end the process."""
    about = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(rows.columns.dtype)),
        "fortran_order": False,
        "shape": (rows.good, *rows.columns.shapes[name]),
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, about)
        for block in rows.blocks(name):
            file.write(np.ascontiguousarray(block).data)
