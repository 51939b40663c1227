"""Where a bulk run's forwards run: in this process, or on other machines."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import pyarrow as pa

from encoders.contract.spec import EncoderSpec
from service.bulk.items import Row
from service.bulk.rows import Columns
from service.engine.values import EmbedRequest

Reading: TypeAlias = Callable[[], Iterator[Row]]
"""Gives items in order, on the thread or the machine that reads. It can be pickled."""


@dataclass(frozen=True)
class Described:
    """What a request gives. exact_pixels: of the engine's settings. arrays: what is to be said of the arrays."""

    spec: EncoderSpec
    exact_pixels: bool
    columns: Columns
    arrays: Mapping[str, object]


class Embedder(Protocol):
    """Turns items into rows."""

    async def described(self, request: EmbedRequest, carried: pa.Schema) -> Described:
        """The encoder and the columns. Raises RequestError if the encoder does not offer what the request asks for."""

    def batches(
        self, reading: Reading, request: EmbedRequest, columns: Columns, *, batch_size: int
    ) -> AsyncGenerator[pa.RecordBatch]:
        """A row for each item, in order; `batch_size` of them at a time, at the end fewer.

        Raises BulkError where the items end before their time, or do not fit the columns; EncoderFailed if the encoder
        fails on a batch and on each of its items.
        """
