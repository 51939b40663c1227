"""Many image files through one encoder, in order, resumable. Knows files and encoders; no server, no terminal.

Whole batches only, always of the same consecutive sound files: so a run that was interrupted and continued computes
the very numbers of one that was not, wherever it stopped.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from encoders import Encoded, Encoder, Grid, decode
from encoders.contract.errors import EncoderFailed, VisiontowerError
from encoders.contract.values import Pixels
from service.bulk import sinks as exports
from service.bulk.resume import Array, BulkError, Failure, Part, Parts, beside, opened, write_whole
from service.bulk.sinks import GRID, Rows
from service.engine.postprocess import finish
from service.http.protocols.native.options import EmbedOptions
from service.scheduling.batch import forward
from service.scheduling.queue import ImageKey

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif".split()  # noqa: SIM905
)
"""What counts as an image in a folder; a file named on the command line is tried whatever its suffix."""

_PART_BYTES = 64 * 1024 * 1024
_PART_SECONDS = 30.0
"""A part is written at the first of these, so a kill costs half a minute and a merge holds one part in memory."""


@dataclass(frozen=True)
class Job:
    """What to compute and where to put it. options: as of /embed. workers: decoding threads."""

    out: Path
    files: Sequence[Path]
    options: EmbedOptions
    batch_size: int = 32
    workers: int = 4
    restart: bool = False


@dataclass(frozen=True)
class Finished:
    """A run's end. images: rows written; resumed: files that earlier runs covered; ledger: None without failures."""

    images: int
    resumed: int
    failures: Sequence[Failure]
    ledger: Path | None
    shapes: dict[str, tuple[int, ...]]


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Files as given, folders' images below them in sorted order, each once. Raises BulkError if one is not there."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = (
                Path(folder, name)
                for folder, _, names in os.walk(path, followlinks=False)
                for name in names
                if os.path.splitext(name)[1].lower() in SUFFIXES
            )
            found.update(dict.fromkeys(sorted(inside)))
        elif path.exists():
            found[path] = None
        else:
            raise BulkError(f"{path} is not there.")
    if not found:
        raise BulkError("There is no image in what was given.")
    return list(found)


def array_names(options: EmbedOptions) -> list[str]:
    """The arrays asked for."""
    return ["tokens", "pooled"] if options.output == "both" else [options.output]


def run(
    job: Job,
    encoder: Encoder,
    *,
    progress: Callable[[int, int], None] = lambda done, failed: None,
    clock: Callable[[], float] = time.monotonic,
) -> Finished:
    """Encode what no earlier part covers, then write `job.out` and remove the parts.

    progress: called with (files covered, files failed), first with what was there already.
    Whatever ends it early, KeyboardInterrupt included, the finished batches are on disk.

    Raises BulkError, RequestError if the encoder does not offer what the options ask for, or EncoderFailed if it fails
    on a batch and on each of its images.
    """
    job.options.outputs(encoder.spec)
    names = [_text(path) for path in job.files]
    exports.check(job.out, names=array_names(job.options), files=names)
    with opened(job.out, run=_parameters(job, encoder), files=names, restart=job.restart) as parts:
        resumed = parts.stop
        _encode_rest(job, encoder, parts, progress=progress, clock=clock)
        rows = _rows(job, encoder, parts)
        if rows is not None:
            exports.export(job.out, rows)
        ledger = _write_ledger(job.out, parts.failures)
        parts.remove()
        return Finished(len(parts.rows), resumed, parts.failures, ledger, dict(rows.shapes) if rows else {})


def _encode_rest(
    job: Job, encoder: Encoder, parts: Parts, *, progress: Callable[[int, int], None], clock: Callable[[], float]
) -> None:
    progress(parts.stop, len(parts.failures))
    part, began = Part(parts.stop, parts.stop), clock()
    with ThreadPoolExecutor(job.workers, thread_name_prefix="decode") as pool:
        try:
            for batch in _batches(job, encoder, parts, pool):
                _encode(job, encoder, parts, batch, into=part)
                progress(part.stop, len(parts.failures) + len(part.failures))
                if part.nbytes >= _PART_BYTES or clock() - began >= _PART_SECONDS:
                    parts.append(part)
                    part, began = Part(part.stop, part.stop), clock()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            parts.append(part)


@dataclass(frozen=True)
class _Batch:
    """Sound images of files before `stop`, and the reasons of the files between them that are not."""

    stop: int
    rows: list[int]
    pixels: list[Pixels]
    failures: list[Failure]


def _batches(job: Job, encoder: Encoder, parts: Parts, pool: ThreadPoolExecutor) -> Iterator[_Batch]:
    """Full batches; the last takes what is left, which may be failures alone."""
    size = encoder.spec.size(job.options.resolution)

    def load(index: int) -> Pixels | Failure:
        try:
            return encoder.preprocess(decode(job.files[index].read_bytes()), size)
        except (VisiontowerError, OSError) as error:
            return _failure(parts.files[index], error)

    batch = _Batch(0, [], [], [])
    ahead = 2 * job.batch_size + job.workers  # the next batch is decoded while one is on the device
    for index, loaded in _ahead(load, range(parts.stop, len(job.files)), pool, ahead=ahead):
        if isinstance(loaded, Failure):
            batch.failures.append(loaded)
            continue
        batch.rows.append(index)
        batch.pixels.append(loaded)
        if len(batch.rows) == job.batch_size:
            yield _Batch(index + 1, batch.rows, batch.pixels, batch.failures)
            batch = _Batch(0, [], [], [])
    yield _Batch(len(job.files), batch.rows, batch.pixels, batch.failures)


def _ahead(
    load: Callable[[int], Pixels | Failure], indices: Iterable[int], pool: ThreadPoolExecutor, *, ahead: int
) -> Iterator[tuple[int, Pixels | Failure]]:
    """Each index with what `load` gives, in order, at most `ahead` of them in work or waiting."""
    upcoming = iter(indices)
    waiting: deque[tuple[int, Future[Pixels | Failure]]] = deque(
        (index, pool.submit(load, index)) for index in islice(upcoming, ahead)
    )
    while waiting:
        index, future = waiting.popleft()
        yield index, future.result()
        waiting.extend((index, pool.submit(load, index)) for index in islice(upcoming, 1))


def _encode(job: Job, encoder: Encoder, parts: Parts, batch: _Batch, *, into: Part) -> None:
    results = _forward(job, encoder, batch.pixels) if batch.rows else []
    rows, good, failures = [], [], list(batch.failures)
    for index, result in zip(batch.rows, results, strict=True):
        if isinstance(result, VisiontowerError):
            failures.append(_failure(parts.files[index], result))
        else:
            rows.append(index)
            good.append(result)
    arrays = (
        {name: np.stack([result[name] for result in good]) for name in (GRID, *array_names(job.options))}
        if good
        else {}
    )
    into.add(stop=batch.stop, rows=rows, arrays=arrays, failures=failures)


def _forward(job: Job, encoder: Encoder, pixels: Sequence[Pixels]) -> list[dict[str, Array] | VisiontowerError]:
    """A row or an error for each image. Raises EncoderFailed if all of several fail: then it is no file's fault."""
    spec = encoder.spec
    key = ImageKey(spec.id, spec.size(job.options.resolution), job.options.outputs(spec))
    outcomes = forward(encoder, key, pixels)
    failures = [outcome for outcome in outcomes if isinstance(outcome, EncoderFailed)]
    if len(failures) == len(outcomes) > 1:
        raise failures[0]
    return [outcome if isinstance(outcome, EncoderFailed) else _finish(job, encoder, outcome) for outcome in outcomes]


def _finish(job: Job, encoder: Encoder, row: Encoded | Array) -> dict[str, Array] | VisiontowerError:
    """One image's arrays as they are written."""
    assert isinstance(row, Encoded), "an array is a text's row"
    try:
        tensors = finish(row, job.options, model=encoder.spec.id)
    except VisiontowerError as error:
        return error
    return {GRID: np.array(row.grid, np.int32), **tensors.named}  # a CNN's stage has a grid of its own


def _rows(job: Job, encoder: Encoder, parts: Parts) -> Rows | None:
    """What there is to export; None if no file could be encoded."""
    first = next((part for part in parts if part.rows), None)
    if first is None:
        return None
    shapes = {name: first.arrays[name][0].shape[1:] for name in array_names(job.options)}
    grid = Grid(*first.arrays[GRID][0][0].tolist())
    prefix_tokens = shapes["tokens"][0] - grid.rows * grid.cols if "tokens" in shapes else 0
    about = {**_parameters(job, encoder), "grid": grid, "prefix_tokens": prefix_tokens}
    return Rows(parts=parts, dtype=job.options.dtype, shapes=shapes, about=about)


def _parameters(job: Job, encoder: Encoder) -> dict[str, object]:
    """All that the numbers depend on, apart from the files; the batch size too, in the last digits."""
    spec, options = encoder.spec, job.options
    return {
        "model": spec.id,
        "revision": spec.revision,
        "device": spec.device,
        "compute_dtype": spec.dtype,
        "runtime": spec.runtime,
        "resolution": str(spec.size(options.resolution)),
        **options.model_dump(include={"output", "layer", "prefix", "project", "normalize", "dtype"}),
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


def _failure(path: str, error: Exception) -> Failure:
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return Failure(path, type(error).__name__, reason)


def _text(path: Path) -> str:
    """The path as text that every format can hold; bytes that are no UTF-8 are escaped."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
