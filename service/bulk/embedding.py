"""Items through the engine, a batch at a time.

Batches are of consecutive items and run by themselves. So a run that was interrupted and continued computes the very
numbers of one that was not, wherever it stopped.
"""

import asyncio
import io
import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from encoders.contract.errors import EncoderFailed, NonFiniteOutput, RequestError, VisiontowerError
from encoders.contract.values import Grid
from service.bulk.errors import BulkError
from service.bulk.items import Inputs, Item
from service.bulk.rows import Columns, Good, Outcome
from service.engine.engine import Engine
from service.engine.values import Embedding, EmbedRequest, Source
from service.errors import ImageUnreadable, LimitExceeded

R = TypeVar("R")
_AHEAD = 4
"""Batches in work at once: two on the device, or in its lanes, and two being decoded."""


@dataclass(frozen=True)
class Batch:
    """Consecutive items and what became of each."""

    items: Sequence[Item]
    outcomes: Sequence[Outcome]

    @property
    def failed(self) -> int:
        """How many items gave nothing."""
        return len(self.failures)

    @property
    def read_last(self) -> Path | None:
        """The last of the files that gave something."""
        outcomes = zip(reversed(self.items), reversed(self.outcomes), strict=True)
        good = (item.source for item, outcome in outcomes if isinstance(outcome, Good))
        return next((source for source in good if isinstance(source, Path)), None)

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Their ids and errors."""
        outcomes = zip(self.items, self.outcomes, strict=True)
        return [(item.id, outcome) for item, outcome in outcomes if isinstance(outcome, str)]


async def columns_of(request: EmbedRequest, inputs: Inputs, engine: Engine) -> tuple[Columns, Mapping[str, object]]:
    """The columns that a run will have, and what else is to be said of its arrays, from a blank picture's forward.

    A CNN's stage knows its grid only by running. Raises what the engine raises for the request.
    """
    blank = io.BytesIO()
    Image.new("RGB", (64, 64)).save(blank, "PNG")
    asked = replace(request, sources=[blank.getvalue()], texts=(), dtype="float32", is_set=True, timeout_s=math.inf)
    (found,) = (await engine.embed(asked)).items
    if isinstance(found, VisiontowerError):
        raise found
    arrays = {"tokens": found.tokens, "pooled": found.pooled}
    shapes = {name: array.shape for name, array in arrays.items() if array is not None}
    about = {"grid": found.grid, "prefix_tokens": found.prefix_tokens if found.tokens is not None else 0}
    return Columns(shapes, request.dtype, inputs.columns), about


async def batches(
    request: EmbedRequest, inputs: Inputs, engine: Engine, *, batch_size: int, start: int
) -> AsyncGenerator[Batch]:
    """All items from the start-th on, in order; some batches ahead in work.

    Where the inputs end before their time, what came before is given first. Raises BulkError then, and as `embedded`.
    """
    items = _items(inputs, start)
    running: deque[asyncio.Task[Batch]] = deque()
    reading: asyncio.Future[list[Item]] | None = on_a_thread(partial(read, items, batch_size))
    was_read: Path | None = None

    async def first() -> Batch:
        nonlocal was_read
        batch = await running[0]
        was_read = batch.read_last or was_read
        if was_read and batch.failed:
            await asyncio.to_thread(_require_sources, batch, was_read)
        running.popleft()
        return batch

    try:
        while reading or running:
            can_read = reading is not None and len(running) < _AHEAD
            awaited: list[asyncio.Future[Any]] = [*([reading] if reading and can_read else []), *islice(running, 1)]
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if running and running[0].done():
                yield await first()
            elif reading is not None and reading.done():
                error = reading.exception()
                if error is None and (ahead := reading.result()):
                    running.append(asyncio.create_task(embedded(ahead, request, engine)))
                    reading = on_a_thread(partial(read, items, batch_size))
                    continue
                while error is not None and running:
                    yield await first()
                if isinstance(error, OSError):
                    raise BulkError(
                        f"The inputs broke off: {error}. What is done is kept; the same command continues."
                    ) from error
                if error is not None:
                    raise error
                reading = None
    finally:
        if reading is not None:
            reading.cancel()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def embedded(items: Sequence[Item], request: EmbedRequest, engine: Engine) -> Batch:
    """Items of a batch through the engine.

    Raises EncoderFailed if the encoder failed on all of several: then it is no item's fault; OutputNotOffered if there
    is a text and the encoder reads none.
    """
    asked = replace(request, is_set=True, timeout_s=math.inf)
    sources: dict[int, Source] = {index: item.source for index, item in enumerate(items) if item.source is not None}
    texts = {index: item.text or "" for index, item in enumerate(items) if item.source is None}
    found: dict[int, Good | VisiontowerError] = {}
    if texts:
        if request.output == "tokens":
            raise BulkError("A text has no tokens here: choose --output pooled or both.")
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
    return Batch(items, [each if isinstance(each, Good) else _sentence(each) for each in outcomes])


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
    return error.reason if isinstance(error, ImageUnreadable) else str(error)


def _require_sources(batch: Batch, was_read: Path) -> None:
    """A file that is not there is a failure. If one that has been read is not there either, a disk has gone.

    Raises BulkError then, so that the files on it do not become failures.
    """
    outcomes = zip(batch.items, batch.outcomes, strict=True)
    failed = (item.source for item, outcome in outcomes if isinstance(outcome, str))
    missing = next((path for path in failed if isinstance(path, Path) and not path.exists()), None)
    if missing and not was_read.exists():
        raise BulkError(
            f"{missing} is not there any more, nor is {was_read}, which has been read before. What is done is kept: "
            "once they are back, the same command continues."
        )


def _items(inputs: Inputs, start: int) -> Iterator[Item]:
    """All that `items` does is done on the thread that reads."""
    yield from inputs.items(start)


def read(items: Iterator[Item], count: int) -> list[Item]:
    """The next items, fewer at the end."""
    return list(islice(items, count))


def on_a_thread(function: Callable[[], R]) -> "asyncio.Future[R]":
    """The function's result, from a thread that ends with the process: reading of a pipe may never end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        if answer.cancelled():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # there is one where there is no error

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the run has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="read items", daemon=True).start()
    return answer
