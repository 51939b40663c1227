"""The layout of clip-retrieval: vectors and what they are of, in two folders."""

from collections.abc import Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.errors import BulkError
from service.bulk.items import Modality
from service.bulk.resume import Manifest
from service.bulk.rows import Rows
from service.bulk.sinks.folder import Folder
from service.bulk.sinks.ledger import ledger
from service.bulk.sinks.npy import write_npy
from service.bulk.sinks.sink import Counts, File


class ClipRetrieval(Folder):
    """As clip-retrieval writes it, for autofaiss and its kin: good rows alone.

    Of images OUT/img_emb/img_emb_0.npy [N, D] float16 of length 1, OUT/metadata/metadata_0.parquet (image_path, the
    carried columns), and OUT/errors/errors_0.jsonl where items failed. Of texts text_emb and caption instead.
    """

    _patterns: ClassVar = (
        *("img_emb/img_emb_[0-9]*.npy", "text_emb/text_emb_[0-9]*.npy"),
        *("metadata/metadata_[0-9]*.parquet", "errors/errors_[0-9]*.jsonl"),
    )

    def __init__(self, out: Path, modalities: Set[Modality]) -> None:
        super().__init__(out)
        self._modalities = modalities
        self._emb, self._named = ("text_emb", "caption") if "text" in modalities else ("img_emb", "image_path")

    def require(self, arrays: Sequence[str]) -> None:
        """As Sink.require."""
        super().require(arrays)
        if list(arrays) != ["pooled"]:
            raise BulkError("The layout clip-retrieval holds pooled vectors: choose --output pooled.")
        if len(self._modalities) > 1:
            raise BulkError(
                "The layout clip-retrieval has one list of names for all vectors: embed images and texts apart, each "
                "into a folder."
            )

    def finished(self, number: int) -> Counts | None:
        """As Sink.finished."""
        vectors, errors = self._vectors(number), self._errors(number)
        if not vectors.exists():
            return None
        failed = len(errors.read_text().splitlines()) if errors.exists() else 0
        return Counts(len(np.load(vectors, mmap_mode="r")) + failed, failed)

    def _vectors(self, number: int) -> Path:
        return self.out / self._emb / f"{self._emb}_{number}.npy"

    def _errors(self, number: int) -> Path:
        return self.out / "errors" / f"errors_{number}.jsonl"

    def files(self, number: int, rows: Rows, manifest: Manifest) -> Iterator[File]:
        """As Sink.files."""
        yield ledger(self._errors(number), rows)
        yield (
            self.out / "metadata" / f"metadata_{number}.parquet",
            partial(_write_metadata, rows=rows, named=self._named),
        )
        yield self._vectors(number), partial(write_npy, name="pooled", rows=rows)


def _write_metadata(path: Path, *, rows: Rows, named: str) -> None:
    """named: the column that says what a row is; one that is carried under this name takes its place."""
    schema, taken = rows.columns.carried, rows.columns.carried.names
    if named not in taken:
        schema, taken = pa.schema([(named, pa.string()), *schema]), ["id", *taken]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in rows.groups():
            good = group.filter(group["error"].is_null()).select(taken)
            writer.write_table(good.rename_columns(schema.names).combine_chunks())
