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

from encoders import Encoded, Encoder, Grid, ImageSize, Outputs, decode
from encoders.errors import EncoderFailed, NonFiniteOutput, RequestError, VisiontowerError
from encoders.types import Pixels
from service.exports import GRID, Rows, check, export
from service.parts import Array, BulkError, Failure, Part, Parts, beside, opened, write_whole

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif".split()  # noqa: SIM905
)
"""What counts as an image in a folder; a file named on the command line is tried whatever its suffix."""

_PART_BYTES = 64 * 1024 * 1024
_PART_SECONDS = 30.0
"""A part is written at the first of these, so a kill costs half a minute and a merge holds one part in memory."""


@dataclass(frozen=True)
class Job:
    """What to compute and where to put it.

    names: arrays of the output, `tokens`, `pooled` or both. prefix: keep class and register tokens.
    normalize: L2, each vector. dtype: float32 or float16, of the numbers written. workers: decoding threads.
    """

    out: Path
    files: Sequence[Path]
    outputs: Outputs
    size: ImageSize
    prefix: bool = False
    normalize: bool = False
    dtype: str = "float32"
    batch_size: int = 32
    workers: int = 4
    restart: bool = False

    @property
    def names(self) -> list[str]:
        """The arrays asked for."""
        return [name for name, asked in (("tokens", self.outputs.tokens), ("pooled", self.outputs.pooled)) if asked]


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

    Raises BulkError, or EncoderFailed if the encoder fails on a batch and on each of its images.
    """
    names = [_text(path) for path in job.files]
    check(job.out, names=job.names, files=names)
    with opened(job.out, run=_parameters(job, encoder), files=names, restart=job.restart) as parts:
        resumed = parts.stop
        _encode_rest(job, encoder, parts, progress=progress, clock=clock)
        rows = _rows(job, encoder, parts)
        if rows is not None:
            export(job.out, rows)
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

    def load(index: int) -> Pixels | Failure:
        try:
            return encoder.preprocess(decode(job.files[index].read_bytes()), job.size)
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
    arrays = {name: np.stack([result[name] for result in good]) for name in (GRID, *job.names)} if good else {}
    into.add(stop=batch.stop, rows=rows, arrays=arrays, failures=failures)


def _forward(job: Job, encoder: Encoder, pixels: Sequence[Pixels]) -> list[dict[str, Array] | VisiontowerError]:
    """A row or an error for each image; a batch that fails is tried image by image, so that one cannot take the others.

    Raises EncoderFailed if all of several fail: then it is the encoder, not a file.
    """
    try:
        encoded = encoder.encode(np.stack(pixels), job.outputs)
    except EncoderFailed as error:
        if len(pixels) == 1:
            return [error]
        alone = [result for one in pixels for result in _forward(job, encoder, [one])]
        if all(isinstance(result, EncoderFailed) for result in alone):
            raise
        return alone
    return [_finish(job, encoder.spec.id, encoded.row(index)) for index in range(len(pixels))]


def _finish(job: Job, encoder_id: str, row: Encoded) -> dict[str, Array] | VisiontowerError:
    """One image's arrays as they are written."""
    tokens = row.tokens if row.tokens is None or job.prefix else row.tokens[row.prefix_tokens :]
    finished: dict[str, Array] = {GRID: np.array(row.grid, np.int32)}  # of a CNN's stage it is not the spec's
    for name, array in (("tokens", tokens), ("pooled", row.pooled)):
        if array is None:
            continue
        wide = array.astype(np.float32)
        if not np.isfinite(wide).all():
            return NonFiniteOutput(encoder=encoder_id)
        if job.normalize:
            wide = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
        with np.errstate(over="ignore"):
            finished[name] = wide.astype(job.dtype)
        if not np.isfinite(finished[name]).all():
            return RequestError(f"A value of {name} is beyond the range of {job.dtype}: write float32.")
    return finished


def _rows(job: Job, encoder: Encoder, parts: Parts) -> Rows | None:
    """What there is to export; None if no file could be encoded."""
    first = next((part for part in parts if part.rows), None)
    if first is None:
        return None
    shapes = {name: first.arrays[name][0].shape[1:] for name in job.names}
    grid = Grid(*first.arrays[GRID][0][0].tolist())
    prefix_tokens = shapes["tokens"][0] - grid.rows * grid.cols if "tokens" in shapes else 0
    about = {**_parameters(job, encoder), "grid": grid, "prefix_tokens": prefix_tokens}
    return Rows(parts=parts, dtype=job.dtype, shapes=shapes, about=about)


def _parameters(job: Job, encoder: Encoder) -> dict[str, object]:
    """All that the numbers depend on, apart from the files; the batch size too, in the last digits."""
    spec = encoder.spec
    return {
        "model": spec.id,
        "revision": spec.revision,
        "device": spec.device,
        "compute_dtype": spec.dtype,
        "resolution": str(job.size),
        "output": "+".join(job.names),
        "token_kind": job.outputs.tokens,
        "layer": job.outputs.layer,
        "prefix": job.prefix,
        "normalize": job.normalize,
        "dtype": job.dtype,
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
