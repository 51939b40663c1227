"""Items to rows, a batch at a time.

Batches are of consecutive items and run by themselves. So a run that was interrupted and continued computes the very
numbers of one that was not, wherever it stopped.
"""

import asyncio
import io
import math
import os
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from encoders.contract.errors import EncoderFailed, NonFiniteOutput, NotAnImage, RequestError, VisiontowerError
from encoders.contract.values import Grid
from service.bulk.embedder import Described, Reading
from service.bulk.errors import BulkError
from service.bulk.items import Item
from service.bulk.reading import on_a_thread, read, read_ahead
from service.bulk.rows import Columns, Good, Outcome
from service.engine.engine import Engine
from service.engine.values import Embedding, EmbedRequest, Source
from service.errors import ImageUnreadable, LimitExceeded

_AHEAD = 4
"""Batches in work at once: two on the device, or in its lanes, and two being decoded."""


@dataclass(frozen=True)
class _Batch:
    """Consecutive items and what became of each."""

    items: Sequence[Item]
    outcomes: Sequence[Outcome]

    @property
    def has_failed(self) -> bool:
        """Whether one of them gave nothing."""
        return any(isinstance(outcome, str) for outcome in self.outcomes)

    @property
    def read_last(self) -> Path | None:
        """The last of the files that gave something."""
        outcomes = zip(reversed(self.items), reversed(self.outcomes), strict=True)
        good = (item.source for item, outcome in outcomes if isinstance(outcome, Good))
        return next((source for source in good if isinstance(source, Path)), None)


class EngineEmbedder:
    """The embedder of this process. It is used by one run at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._was_read: Path | None = None

    async def described(self, request: EmbedRequest, carried: pa.Schema) -> Described:
        """As Embedder. The shapes are those of a blank picture: a CNN's stage knows its grid only by running."""
        engine = self.engine
        spec = engine.models.specs[engine.models.id_of(request.model)]
        request.outputs(spec)
        blank = io.BytesIO()
        Image.new("RGB", (64, 64)).save(blank, "PNG")
        asked = replace(request, sources=[blank.getvalue()], texts=(), dtype="float32", is_set=True, timeout_s=math.inf)
        (found,) = (await engine.embed(asked)).items
        if isinstance(found, VisiontowerError):
            raise found
        arrays = {"tokens": found.tokens, "pooled": found.pooled}
        shapes = {name: array.shape for name, array in arrays.items() if array is not None}
        about = {"grid": found.grid, "prefix_tokens": found.prefix_tokens if found.tokens is not None else 0}
        return Described(spec, engine.settings.exact_pixels, Columns(shapes, request.dtype, carried), about)

    async def batches(
        self, reading: Reading, request: EmbedRequest, columns: Columns, *, batch_size: int
    ) -> AsyncGenerator[pa.RecordBatch]:
        """As Embedder. Some batches are ahead in work. Where items end before their time, those before come first."""
        items = _items(reading)
        running: deque[asyncio.Task[_Batch]] = deque()
        reads: asyncio.Future[list[Item]] | None = on_a_thread(partial(read, items, batch_size))

        async def first() -> pa.RecordBatch:
            batch = await running[0]
            self._was_read = batch.read_last or self._was_read
            if self._was_read and batch.has_failed:
                await asyncio.to_thread(_require_sources, batch, self._was_read)
            running.popleft()
            return columns.batch(batch.items, batch.outcomes)

        try:
            while reads or running:
                can_read = reads is not None and len(running) < _AHEAD
                awaited: list[asyncio.Future[Any]] = [*([reads] if reads and can_read else []), *islice(running, 1)]
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if running and running[0].done():
                    yield await first()
                elif reads is not None and reads.done():
                    error = reads.exception()
                    if error is None and (ahead := reads.result()):
                        running.append(asyncio.create_task(_embedded(ahead, request, self.engine)))
                        reads = on_a_thread(partial(read, items, batch_size))
                        continue
                    while error is not None and running:
                        yield await first()
                    if error is not None:
                        raise error
                    reads = None
        finally:
            if reads is not None:
                reads.cancel()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def _embedded(items: Sequence[Item], request: EmbedRequest, engine: Engine) -> _Batch:
    """Items of a batch through the engine.

    Raises EncoderFailed if the encoder failed on all of several: then it is no item's fault; OutputNotOffered if there
    is a text and the encoder reads none.
    """
    asked = replace(request, is_set=True, timeout_s=math.inf)
    sources: dict[int, Source] = {index: item.source for index, item in enumerate(items) if item.source is not None}
    texts = {index: item.text or "" for index, item in enumerate(items) if item.source is None}
    found: dict[int, Good | VisiontowerError] = {}
    if texts:
        engine.models.specs[engine.models.id_of(request.model)].require_text()
    try:
        found = await _found(sources, texts, asked, engine)
    except (RequestError, LimitExceeded, EncoderFailed) as error:
        if not texts:
            raise
        found = await _found(sources, {}, asked, engine) if sources else {}
        for index, text in texts.items():
            try:
                found |= await _found({}, {index: text}, asked, engine) if len(items) > 1 else {index: error}
            except (RequestError, LimitExceeded, EncoderFailed) as own:
                found[index] = own
    outcomes = [found[index] for index in range(len(items))]
    broken = [each for each in outcomes if isinstance(each, EncoderFailed) and not isinstance(each, NonFiniteOutput)]
    if len(broken) > 1 and not any(isinstance(each, Good) for each in outcomes):
        raise broken[0]
    return _Batch(items, [each if isinstance(each, Good) else _sentence(each) for each in outcomes])


async def _found(
    sources: Mapping[int, Source], texts: Mapping[int, str], request: EmbedRequest, engine: Engine
) -> dict[int, Good | VisiontowerError]:
    """By the item's place."""
    result = await engine.embed(replace(request, sources=list(sources.values()), texts=list(texts.values())))
    found = {
        index: item if isinstance(item, VisiontowerError) else _good(item)
        for index, item in zip(sources, result.items, strict=True)
    }
    of_texts = {index: Good(None, {"pooled": row}) for index, row in zip(texts, result.texts, strict=True)}
    return {**found, **of_texts}


def _good(item: Embedding) -> Good:
    arrays = {"tokens": item.tokens, "pooled": item.pooled}
    return Good(Grid(*item.grid), {name: array for name, array in arrays.items() if array is not None})


def _sentence(error: VisiontowerError) -> str:
    """Of NotAnImage without its advice, which is for who sends an image over HTTP."""
    if isinstance(error, NotAnImage):
        return f"This is {error.facts['found']}, which is no image that is read here."
    return error.reason if isinstance(error, ImageUnreadable) else str(error)


def _require_sources(batch: _Batch, was_read: Path) -> None:
    """A file that is not there is a failure. If one that has been read is not there either, a disk has gone.

    Raises BulkError then, so that the files on it do not become failures.
    """
    outcomes = zip(batch.items, batch.outcomes, strict=True)
    failed = (item.source for item, outcome in outcomes if isinstance(outcome, str))
    missing = next((path for path in failed if isinstance(path, Path) and not os.path.exists(path)), None)
    if missing and not os.path.exists(was_read):
        raise BulkError(
            f"{missing} is not there any more, nor is {was_read}, which has been read before. What is done is kept: "
            "once they are back, the same command continues."
        )


def _items(reading: Reading) -> Iterator[Item]:
    """All that the reading does is done on the thread that asks for items."""
    yield from read_ahead(reading())
