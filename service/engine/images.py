"""An image's way to its row: fetch or read, decode, preprocess, queue, forward.

Fetching and pricing are done on the event loop, decoding and preprocessing on the decoding threads, forwards on the
device threads. Everything that depends on one caller's bytes is over before the image can share a batch.
"""

import asyncio
import logging
import math
import os
import stat
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from opentelemetry.trace import SpanKind
from PIL import Image

from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, VisiontowerError
from encoders.contract.values import Encoded, Floats, Grid, ImageSize, Pixels
from encoders.images.preprocess import enough
from encoders.images.price import Price, price
from service.engine.cache.results import Found, Made, ResultCache
from service.engine.decoding import TOGETHER, Decode, Decoding, Job, is_little
from service.engine.fetcher import Fetcher
from service.engine.origin import Origin
from service.engine.tasks import together
from service.engine.values import CacheUse, ImageUrl, Source, Timing
from service.errors import DeadlineExceeded, ImageUnreadable, ShuttingDown, Unavailable
from service.memory.account import Hold
from service.memory.shape import ImageShape
from service.scheduling.device_threads import DeviceThreads, Expected
from service.scheduling.items import Answer
from service.scheduling.resident import Resident
from service.telemetry.metrics import ImageStages
from service.telemetry.tracing import TRACE, UNTRACED

R = TypeVar("R")
_log = logging.getLogger(__name__)
_FREE = Price(is_plain=True, decode_bytes=0, nbytes=0, work=1, cpu_s=0)
"""Of work on a decoding thread that decodes nothing: reading a file, joining tokens."""

Outcome: TypeAlias = Encoded | VisiontowerError
"""One image's row, or the error that stands for it."""
_NO_URLS: AbstractContextManager[Hold | None] = nullcontext()


@dataclass(frozen=True)
class EncodedImages:
    """One outcome and its stages an image, in order; timing: of the slowest. values: how many numbers the rows hold.

    cached: how many of the rows were kept ones; None if none was looked for.
    """

    outcomes: Sequence[Outcome]
    stages: Sequence[ImageStages]
    timing: Timing
    values: int
    cached: CacheUse | None = None


@dataclass(frozen=True, eq=False)
class _Flow:
    """One request: its images stand in line together. deadline: on the clock. fetched: holds the bytes behind its URLs.

    pixels: bytes of all its pixels; 0 of a set, whose sender has the memory to himself.
    origin: of its rows; None if they are neither kept nor looked for. found: those that were looked for.
    """

    resident: Resident
    shape: ImageShape
    deadline: float
    fetched: Hold | None
    pixels: int
    origin: Origin | None
    found: list[Found] = field(default_factory=list)


MakeRow: TypeAlias = Callable[[bytes, ImageStages, _Flow], Awaitable[Made]]
"""From an image's bytes to its row."""


class Images:
    """Takes images through their stages."""

    def __init__(
        self,
        *,
        threads: DeviceThreads,
        fetcher: Fetcher,
        decoding: Decoding,
        clock: Callable[[], float],
        max_image_pixels: int,
        exact_pixels: bool,
        cache: ResultCache | None = None,
    ) -> None:
        self._threads = threads
        self._fetcher = fetcher
        self._decoding = decoding
        self._files = asyncio.Semaphore(decoding.threads)
        self._clock = clock
        self._max_image_pixels = max_image_pixels
        self._exact_pixels = exact_pixels
        self._cache = cache

    async def encode(
        self,
        sources: Sequence[Source],
        *,
        resident: Resident,
        shape: ImageShape,
        started: float,
        deadline: float,
        is_set: bool = False,
        in_tiles: bool = False,
    ) -> EncodedImages:
        """A bad image is an error at its index, the others are answered.

        started, deadline: on the clock. is_set: the images share their forwards with nobody else, in order; they are
        all decoded first, and no row is kept, or one that was. in_tiles: each image goes as the views that the encoder
        cuts it into, and their tokens are joined; then is_set concerns kept rows alone.

        Raises what is true of the whole request: Unavailable or DeadlineExceeded.
        """
        stages = [ImageStages() for _ in sources]
        if (trace := TRACE.get()) is not None:
            for index, spent in enumerate(stages):
                spent.trace = trace.of_image(index)
        urls = list(map(type, sources)).count(ImageUrl)
        with self._fetcher.request(urls) if urls else _NO_URLS as fetched:
            origin = None
            if self._cache is not None and not is_set:
                origin = self._cache.origin(resident.spec, shape, in_tiles=in_tiles)
            views = resident.spec.most_views if in_tiles else 1
            pixels = 0 if is_set else 3 * math.prod(shape.size) * len(sources) * views
            flow = _Flow(resident, shape, deadline, fetched, pixels, origin)
            make = self._make_tiled if in_tiles else self._make_row
            if is_set and not in_tiles:
                answers = await self._encode_set(sources, stages, flow)
            elif len(sources) == 1:
                answers = [await self._encode_one(sources[0], make, stages[0], flow)]
            else:
                answers = await together(
                    self._encode_one(source, make, spent, flow) for source, spent in zip(sources, stages, strict=True)
                )
        outcomes: list[Outcome] = []
        values = 0
        for answer, spent in zip(answers, stages, strict=True):
            if isinstance(answer, Unavailable | DeadlineExceeded):
                raise answer
            if isinstance(answer, VisiontowerError):
                outcomes.append(answer)
                continue
            row = answer.row
            spent.queue, spent.forward = answer.queue_s, answer.forward_s
            outcomes.append(row)
            values += 0 if row.tokens is None else row.tokens.size
            values += 0 if row.pooled is None else row.pooled.size
        slowest = stages[0]
        if len(stages) > 1:
            slowest = ImageStages(*(max(spent) for spent in zip(*(each.seconds for each in stages), strict=True)))
        timing = Timing(
            slowest.fetch,
            slowest.decode,
            slowest.preprocess,
            slowest.queue,
            slowest.forward,
            total=self._clock() - started,
        )
        return EncodedImages(outcomes, stages, timing, values, _cache_use(flow.found) if flow.found else None)

    async def _encode_one(self, source: Source, make: MakeRow, spent: ImageStages, flow: _Flow) -> Made:
        try:
            image_bytes = source if isinstance(source, bytes) else await self._read(source, spent, flow)
        except VisiontowerError as error:
            return error
        if self._cache is None or flow.origin is None:
            return await make(image_bytes, spent, flow)
        found = await self._cache.row(image_bytes, flow.origin, lambda: make(image_bytes, spent, flow))
        flow.found.append(found)
        return found.made

    async def _make_row(self, image_bytes: bytes, spent: ImageStages, flow: _Flow) -> Made:
        resident, shape, encoder = flow.resident, flow.shape, flow.resident.encoder
        try:
            cost = self._price(image_bytes, encoder, shape.size)
            expected = self._threads.expect(resident, shape, deadline=flow.deadline, trace=spent.trace)
            job = Job(cost, partial(self._fill, expected, image_bytes, encoder, shape, spent), expected.fail)
            try:
                self._decoding.submit(job, flow, beside=flow.pixels)
            except VisiontowerError as error:
                expected.fail(error)
            try:
                return await expected.future
            except asyncio.CancelledError:
                self._decoding.drop(job)
                raise
        except VisiontowerError as error:
            return error

    async def _make_tiled(self, image_bytes: bytes, spent: ImageStages, flow: _Flow) -> Made:
        resident, shape, encoder = flow.resident, flow.shape, flow.resident.encoder
        try:
            side = max(shape.size) * (encoder.spec.most_views - 1)  # of no canvas is any longer
            canvas = ImageSize(side, side)
            cost = self._price(image_bytes, encoder, canvas)

            def cut(decode: Decode) -> tuple[list[Pixels], ImageSize]:
                image = self._decoded(decode, image_bytes, encoder, canvas, spent)
                views = self._timed("preprocess", partial(encoder.cut, image, exact=self._exact_pixels), encoder, spent)
                if not views or any(not _is_view(view, shape.size) for view in views):
                    raise _no_pixels(encoder, shape.size)
                return views, ImageSize(image.height, image.width)

            views, given = await self._done(cost, flow, cut)
            futures = [
                self._threads.submit(resident, shape, view, deadline=flow.deadline, trace=spent.trace) for view in views
            ]
            answers: list[Answer[Encoded]] = []
            for answer in await _gathered(futures):
                if isinstance(answer, VisiontowerError):
                    return answer
                answers.append(answer)
            joined = await self._done(_FREE, flow, lambda _: _joined(encoder, [each.row for each in answers], given))
        except VisiontowerError as error:
            return error
        whole = Encoded(Grid(1, len(joined)), 0, joined, answers[0].row.pooled)
        return Answer(whole, max(each.queue_s for each in answers), max(each.forward_s for each in answers))

    async def _encode_set(self, sources: Sequence[Source], stages: Sequence[ImageStages], flow: _Flow) -> list[Made]:
        made = await self._make_set(sources, stages, flow)
        sound = {index: each for index, each in enumerate(made) if not isinstance(each, VisiontowerError)}
        futures = self._threads.submit_set(
            flow.resident, flow.shape, list(sound.values()), deadline=flow.deadline, trace=TRACE.get()
        )
        answers = dict(zip(sound, await _gathered(futures), strict=True))
        return [each if isinstance(each, VisiontowerError) else answers[index] for index, each in enumerate(made)]

    async def _make_set(
        self, sources: Sequence[Source], stages: Sequence[ImageStages], flow: _Flow
    ) -> list[Pixels | VisiontowerError]:
        """The little images are made one after the other by each thread, and then the others, each by itself.

        To hand a little image over to a thread, and its pixels back, takes longer than to make them.
        """
        made: list[Pixels | VisiontowerError | None] = [None] * len(sources)
        waiting = deque(range(len(sources)))

        def make_little(decode: Decode) -> None:
            while waiting:
                images: dict[int, Image.Image] = {}
                for _ in range(TOGETHER):
                    with suppress(IndexError):  # another thread has taken the last
                        index = waiting.popleft()
                        image = self._little(sources[index], stages[index], flow, decode)
                        if isinstance(image, Image.Image):
                            images[index] = image
                        else:
                            made[index] = image
                for index, image in images.items():
                    made[index] = self._resized(image, flow.resident.encoder, flow.shape, stages[index])

        async def make_on_a_thread() -> None:
            with suppress(ShuttingDown):  # as each image will be told
                await self._done(_FREE, flow, make_little)

        try:
            await together(make_on_a_thread() for _ in range(min(self._decoding.threads, len(sources))))
        finally:
            waiting.clear()  # nobody waits for the rest
        left = [index for index, each in enumerate(made) if each is None]
        by_themselves = await together(self._make_in_turn(sources[index], stages[index], flow) for index in left)
        for index, each in zip(left, by_themselves, strict=True):
            made[index] = each
        return [each for each in made if each is not None]

    def _little(
        self, source: Source, spent: ImageStages, flow: _Flow, decode: Decode
    ) -> Image.Image | VisiontowerError | None:
        """A little image that is here, decoded. On a decoding thread. None of any other."""
        encoder, size = flow.resident.encoder, flow.shape.size
        if isinstance(source, ImageUrl):
            return None
        try:
            if isinstance(source, VisiontowerError):
                raise source
            image_bytes = source if isinstance(source, bytes) else _read(source)
            if not is_little(self._price(image_bytes, encoder, size)):
                return None
            return self._decoded(decode, image_bytes, encoder, size, spent)
        except VisiontowerError as error:
            return error

    async def _make_in_turn(self, source: Source, spent: ImageStages, flow: _Flow) -> Pixels | VisiontowerError:
        """As `_make`. As many files are in memory as there are threads, in order."""
        if not isinstance(source, Path):
            return await self._make(source, spent, flow)
        async with self._files:
            return await self._make(source, spent, flow)

    async def _make(self, source: Source, spent: ImageStages, flow: _Flow) -> Pixels | VisiontowerError:
        encoder, shape = flow.resident.encoder, flow.shape
        try:
            image_bytes = source if isinstance(source, bytes) else await self._read(source, spent, flow)
            cost = self._price(image_bytes, encoder, shape.size)

            def work(decode: Decode) -> Pixels | VisiontowerError:
                return self._resized(
                    self._decoded(decode, image_bytes, encoder, shape.size, spent), encoder, shape, spent
                )

            return await self._done(cost, flow, work)
        except VisiontowerError as error:
            return error

    def _price(self, image_bytes: bytes, encoder: Encoder, size: ImageSize) -> Price:
        """Of making an image for an encoder that sees it at this size. Raises ImageTooLarge."""
        preprocessing, limit = encoder.spec.preprocessing, self._max_image_pixels
        return price(image_bytes, preprocessing, size, exact=self._exact_pixels, max_pixels=limit)

    async def _read(self, source: ImageUrl | Path | VisiontowerError, spent: ImageStages, flow: _Flow) -> bytes:
        """The bytes behind a source. Raises the source if it is an error."""
        if isinstance(source, VisiontowerError):
            raise source
        if isinstance(source, Path):
            return await self._done(_FREE, flow, lambda _: _read(source))
        started = self._clock()
        assert flow.fetched is not None, "encode has counted the URLs"
        with spent.trace.stage("fetch", kind=SpanKind.CLIENT) if spent.trace else UNTRACED:
            image_bytes = await self._fetcher.fetch(source.url, flow.fetched)
        spent.fetch = self._clock() - started
        return image_bytes

    async def _done(self, cost: Price, flow: _Flow, work: Callable[[Decode], R]) -> R:
        """The work's result, from a decoding thread. Raises what it raises, and as Decoding.submit."""
        done: Future[R] = Future()

        def run(decode: Decode) -> None:
            try:
                done.set_result(work(decode))
            except Exception as error:
                done.set_exception(error)

        def fail(error: VisiontowerError | None) -> None:
            if error is None:
                done.cancel()
            else:
                done.set_exception(error)

        job = Job(cost, run, fail)
        self._decoding.submit(job, flow, beside=flow.pixels)
        try:
            return await asyncio.shield(asyncio.wrap_future(done))
        except asyncio.CancelledError:
            self._decoding.drop(job)
            raise

    def _fill(
        self,
        expected: Expected,
        image_bytes: bytes,
        encoder: Encoder,
        shape: ImageShape,
        spent: ImageStages,
        decode: Decode,
    ) -> Callable[[], None] | None:
        """On a decoding thread. Decodes, and gives what follows."""
        if expected.future.done():
            expected.fail(None)
            return None
        try:
            image = self._decoded(decode, image_bytes, encoder, shape.size, spent)
        except VisiontowerError as error:
            expected.fail(error)
            return None
        return partial(self._queue, expected, image, encoder, shape, spent)

    def _queue(
        self, expected: Expected, image: Image.Image, encoder: Encoder, shape: ImageShape, spent: ImageStages
    ) -> None:
        """On a decoding thread. Resizes, and queues the pixels."""
        made = self._resized(image, encoder, shape, spent)
        if isinstance(made, VisiontowerError):
            expected.fail(made)
        else:
            expected.fill(made)

    def _resized(
        self, image: Image.Image, encoder: Encoder, shape: ImageShape, spent: ImageStages
    ) -> Pixels | VisiontowerError:
        """The encoder's pixels of the image, or the error that stands for them. On a decoding thread."""
        preprocess = partial(encoder.preprocess, image, shape.size, exact=self._exact_pixels)
        try:
            pixels = self._timed("preprocess", preprocess, encoder, spent)
        except VisiontowerError as error:
            return error
        if getattr(pixels, "shape", None) != (*shape.size, 3) or pixels.dtype != np.uint8:
            return _no_pixels(encoder, shape.size)
        return pixels

    def _decoded(
        self, decode: Decode, image_bytes: bytes, encoder: Encoder, size: ImageSize, spent: ImageStages
    ) -> Image.Image:
        """The image, of which the encoder sees this size. On a decoding thread.

        Raises VisiontowerError, whatever a library raised.
        """
        at_least = None if self._exact_pixels else enough(encoder.spec.preprocessing, size)
        work = partial(decode, image_bytes, max_pixels=self._max_image_pixels, at_least=at_least)
        return self._timed("decode", work, encoder, spent)

    def _timed(
        self, stage: Literal["decode", "preprocess"], work: Callable[[], R], encoder: Encoder, spent: ImageStages
    ) -> R:
        """What the work gives; it is this stage of the image. On a decoding thread. Raises as `_decoded`."""
        started = self._clock()
        try:
            with spent.trace.stage(stage) if spent.trace else UNTRACED:
                made = work()
        except VisiontowerError:
            raise
        except BaseException as error:
            raise _unprepared(encoder) from error
        setattr(spent, stage, self._clock() - started)
        return made


def _unprepared(encoder: Encoder) -> EncoderFailed:
    """In place of what a library raised, even the panic of one in Rust: somebody waits for the pixels."""
    _log.exception("an image could not be prepared")
    model = encoder.spec.id
    return EncoderFailed(f"{model} could not prepare the image.", model=model)


def _is_view(pixels: object, size: ImageSize) -> bool:
    return isinstance(pixels, np.ndarray) and pixels.shape == (*size, 3) and pixels.dtype == np.uint8


def _no_pixels(encoder: Encoder, size: ImageSize) -> EncoderFailed:
    model = encoder.spec.id
    return EncoderFailed(f"{model} did not make the image into uint8 pixels of {size} in 3 channels.", model=model)


def _cache_use(found: Sequence[Found]) -> CacheUse:
    ages = [each.age_s for each in found if each.age_s is not None]
    return CacheUse(hits=len(ages), misses=len(found) - len(ages), age_s=max(ages, default=0.0))


def _joined(encoder: Encoder, rows: Sequence[Encoded], image: ImageSize) -> Floats:
    """The tokens of an image's views as one. Raises VisiontowerError, whatever a library raised."""
    model, width = encoder.spec.id, encoder.spec.projected_size
    try:
        joined = encoder.join([row.tokens[row.prefix_tokens :] for row in rows if row.tokens is not None], image)
    except VisiontowerError:
        raise
    except Exception as error:
        _log.exception("the views of an image could not be joined")
        raise EncoderFailed(f"{model} could not join the views of the image.", model=model) from error
    if not isinstance(joined, np.ndarray) or joined.shape[1:] != (width,):
        raise EncoderFailed(f"{model} did not join the views of the image to rows of {width}.", model=model)
    return joined


def _read(path: Path) -> bytes:
    """A pipe is read to its end, and is empty if nobody has it open to write; a device may have no end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise ImageUnreadable(path, reason="It is a device")
        if stat.S_ISFIFO(mode):
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as pipe:
                os.set_blocking(pipe.fileno(), True)
                return pipe.read()
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadable(path, reason=error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise ImageUnreadable(path, reason="No file can have this name") from error


async def _gathered(futures: Sequence["asyncio.Future[Answer[Encoded]]"]) -> list[Made]:
    """Every future's answer or error, in order; if the wait is cancelled, so are they."""
    if not futures:
        return []
    try:
        await asyncio.wait(futures)
    finally:
        for future in futures:
            future.cancel()
    answers: list[Made] = []
    for future in futures:
        error = future.exception()
        if error is None:
            answers.append(future.result())
        elif isinstance(error, VisiontowerError):
            answers.append(error)
        else:
            raise error
    return answers
