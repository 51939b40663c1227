"""Many image files through the engine, in order, resumable.

Batches are of consecutive files and run by themselves. So a run that was interrupted and continued computes the very
numbers of one that was not, wherever it stopped.
"""

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from encoders.contract.errors import EncoderFailed, NonFiniteOutput, VisiontowerError
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Grid
from service.bulk import sinks
from service.bulk.resume import Failure, Part, Parts, beside, opened, write_whole
from service.bulk.sinks import GRID, Rows
from service.bulk.sources.place import shown
from service.engine.engine import Engine
from service.engine.values import Embedding, EmbedRequest, EmbedResult
from service.errors import ImageUnreadable

_AHEAD = 4
"""Batches in work at once: two on the device, or in its lanes, and two being decoded."""
_PART_BYTES = 64 * 1024 * 1024
_PART_SECONDS = 30.0
"""A part is written at the first of these, so a kill costs half a minute and a merge holds one part in memory."""


@dataclass(frozen=True)
class Job:
    """The files, how to encode them and where to write. request: its sources are left out."""

    out: Path
    files: Sequence[Path]
    request: EmbedRequest
    batch_size: int = 32
    restart: bool = False

    @property
    def arrays(self) -> list[str]:
        """The arrays that are written."""
        return ["tokens", "pooled"] if self.request.output == "both" else [self.request.output]


@dataclass(frozen=True)
class Finished:
    """A run's end. images: rows written; resumed: files that earlier runs covered; ledger: None without failures."""

    images: int
    resumed: int
    failures: Sequence[Failure]
    ledger: Path | None
    shapes: dict[str, tuple[int, ...]]


async def run(
    job: Job,
    engine: Engine,
    *,
    progress: Callable[[int, int], None] = lambda done, failed: None,
    clock: Callable[[], float] = time.monotonic,
) -> Finished:
    """Encode the files that no earlier part covers, then write `job.out` and remove the parts.

    progress: called with (files covered, files failed), first with those that were there already.
    Whatever ends it early, a cancellation included, the finished batches are on disk.

    Raises BulkError, RequestError if the encoder does not offer what the request asks for, or EncoderFailed if it fails
    on a batch and on each of its images.
    """
    spec = engine.models.specs[engine.models.id_of(job.request.model)]
    job.request.outputs(spec)
    names = [shown(str(path)) for path in job.files]
    sinks.check(job.out, names=job.arrays, files=names)
    with opened(job.out, run=_parameters(job, spec, engine), files=names, restart=job.restart) as parts:
        resumed = parts.stop
        await _encode_rest(job, engine, parts, progress=progress, clock=clock)
        rows = _rows(job, spec, engine, parts)
        if rows is not None:
            sinks.export(job.out, rows)
        ledger = _write_ledger(job.out, parts.failures)
        parts.remove()
        return Finished(len(parts.rows), resumed, parts.failures, ledger, dict(rows.shapes) if rows else {})


async def _encode_rest(
    job: Job, engine: Engine, parts: Parts, *, progress: Callable[[int, int], None], clock: Callable[[], float]
) -> None:
    progress(parts.stop, len(parts.failures))
    part, began = Part(parts.stop, parts.stop), clock()
    try:
        async with aclosing(_batches(job, engine, start=parts.stop)) as batches:
            async for first, result in batches:
                part = _with_batch(job, part, parts.files, first, result)
                progress(part.stop, len(parts.failures) + len(part.failures))
                if part.nbytes >= _PART_BYTES or clock() - began >= _PART_SECONDS:
                    parts.append(part)
                    part, began = Part(part.stop, part.stop), clock()
    finally:
        parts.append(part)


async def _batches(job: Job, engine: Engine, *, start: int) -> AsyncGenerator[tuple[int, EmbedResult]]:
    """The first file of each batch, and its result; in order, some ahead in work."""
    running: deque[tuple[int, asyncio.Task[EmbedResult]]] = deque()
    try:
        for first in range(start, len(job.files), job.batch_size):
            files = job.files[first : first + job.batch_size]
            request = replace(job.request, sources=files, is_set=True, timeout_s=math.inf)
            running.append((first, asyncio.create_task(engine.embed(request))))
            if len(running) == _AHEAD:
                yield await _next(running)
        while running:
            yield await _next(running)
    finally:
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)


async def _next(running: deque[tuple[int, asyncio.Task[EmbedResult]]]) -> tuple[int, EmbedResult]:
    first, task = running[0]
    result = await task
    running.popleft()
    return first, result


def _with_batch(job: Job, part: Part, files: Sequence[str], first: int, result: EmbedResult) -> Part:
    """Raises EncoderFailed if the encoder failed on all of several images: then it is no file's fault."""
    rows: list[int] = []
    failures: list[Failure] = []
    good: list[Embedding] = []
    broken: list[EncoderFailed] = []
    for index, item in enumerate(result.items, start=first):
        if isinstance(item, VisiontowerError):
            failures.append(_failure(files[index], item))
            if isinstance(item, EncoderFailed) and not isinstance(item, NonFiniteOutput):
                broken.append(item)
        else:
            rows.append(index)
            good.append(item)
    if len(broken) > 1 and not good:
        raise broken[0]
    arrays = {}
    if good:
        arrays = {name: np.stack([getattr(item, name) for item in good]) for name in job.arrays}
        arrays[GRID] = np.array([item.grid for item in good], np.int32)  # a CNN's stage has a grid of its own
    return part.and_then(stop=first + len(result.items), rows=rows, arrays=arrays, failures=failures)


def _rows(job: Job, spec: EncoderSpec, engine: Engine, parts: Parts) -> Rows | None:
    """The rows to export; None if no file could be encoded."""
    first = next((part for part in parts if part.rows), None)
    if first is None:
        return None
    shapes = {name: first.arrays[name][0].shape[1:] for name in job.arrays}
    grid = Grid(*first.arrays[GRID][0][0].tolist())
    prefix_tokens = shapes["tokens"][0] - grid.rows * grid.cols if "tokens" in shapes else 0
    about = {**_parameters(job, spec, engine), "grid": grid, "prefix_tokens": prefix_tokens}
    return Rows(parts=parts, dtype=job.request.dtype, shapes=shapes, about=about)


def _parameters(job: Job, spec: EncoderSpec, engine: Engine) -> dict[str, object]:
    """All that the numbers depend on, apart from the files; the batch size too, in the last digits."""
    request = job.request
    asked = {name: getattr(request, name) for name in ("output", "layer", "prefix", "project", "normalize", "dtype")}
    return {
        "model": spec.id,
        "revision": spec.revision,
        "device": spec.device,
        "compute_dtype": spec.dtype,
        "runtime": spec.runtime,
        "exact_pixels": engine.settings.exact_pixels,
        "resolution": str(spec.size(request.resolution)),
        **asked,
        "batch_size": job.batch_size,
    }


def _write_ledger(out: Path, failures: Sequence[Failure]) -> Path | None:
    """OUT.errors.jsonl, one object a file that failed; an older ledger goes when there is none."""
    ledger = beside(out, ".errors.jsonl")
    if not failures:
        ledger.unlink(missing_ok=True)
        return None
    lines = "".join(json.dumps(asdict(failure)) + "\n" for failure in failures)
    write_whole(ledger, lambda path: path.write_text(lines))
    return ledger


def _failure(path: str, error: VisiontowerError) -> Failure:
    reason = error.reason if isinstance(error, ImageUnreadable) else str(error)
    return Failure(path, type(error).__name__, reason)
