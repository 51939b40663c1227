"""One image's way to its row: fetch or read, decode, preprocess, queue, forward.

Fetching is done on the event loop, reading, decoding and preprocessing on the CPU pool, forwards on the device threads.
Everything that depends on one caller's bytes is over before the image can share a batch.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, VisiontowerError
from encoders.contract.values import Encoded, ImageSize, Pixels
from encoders.images.decode import decode
from encoders.images.preprocess import enough
from service.engine.fetcher import Fetcher
from service.engine.values import ImageUrl, Source, Timing
from service.errors import DeadlineExceeded, ImageUnreadable, Unavailable
from service.memory.shape import ImageShape
from service.scheduling.device_threads import Answer, DeviceThreads
from service.scheduling.resident import Resident
from service.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedImage:
    """An image's row, and the seconds it spent in each stage."""

    row: Encoded
    timing: Timing


Outcome: TypeAlias = EncodedImage | VisiontowerError
"""What became of one image of a request."""


@dataclass
class _Spent:
    """Seconds of the stages before the queue. Written on the pool."""

    fetch: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0


class Images:
    """Takes images through their stages."""

    def __init__(
        self,
        *,
        threads: DeviceThreads,
        fetcher: Fetcher,
        pool: Executor,
        metrics: Metrics,
        clock: Callable[[], float],
        max_image_pixels: int,
        exact_pixels: bool,
    ) -> None:
        self._threads = threads
        self._fetcher = fetcher
        self._pool = pool
        self._metrics = metrics
        self._clock = clock
        self._max_image_pixels = max_image_pixels
        self._exact_pixels = exact_pixels

    async def encode(
        self, sources: Sequence[Source], *, resident: Resident, shape: ImageShape, deadline: float, is_set: bool = False
    ) -> list[Outcome]:
        """One outcome an image, in order: a bad image is an error at its index, the others are answered.

        is_set: the images share their forwards with nobody else, in order; they are all decoded first.
        Raises what is true of the whole request: Unavailable or DeadlineExceeded.
        """
        if is_set:
            outcomes = await self._encode_set(sources, resident=resident, shape=shape, deadline=deadline)
        elif len(sources) == 1:
            outcomes = [await self._encode_one(sources[0], resident, shape, deadline)]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._encode_one(source, resident, shape, deadline)) for source in sources]
            outcomes = [task.result() for task in tasks]
        for outcome in outcomes:
            if isinstance(outcome, Unavailable | DeadlineExceeded):
                raise outcome
        return outcomes

    async def _encode_one(self, source: Source, resident: Resident, shape: ImageShape, deadline: float) -> Outcome:
        spent = _Spent()
        try:
            if isinstance(source, VisiontowerError):
                raise source
            if isinstance(source, ImageUrl):
                source = await self._fetch(source, spent)
            make = partial(self._pixels, source, resident.encoder, shape.size, spent)
            answer = await self._threads.submit_made(resident, shape, make, pool=self._pool, deadline=deadline)
        except VisiontowerError as error:
            return error
        return self._encoded(answer, spent, shape.model)

    async def _encode_set(
        self, sources: Sequence[Source], *, resident: Resident, shape: ImageShape, deadline: float
    ) -> list[Outcome]:
        spent = [_Spent() for _ in sources]
        async with asyncio.TaskGroup() as group:
            made = [
                group.create_task(self._made(source, resident.encoder, shape.size, seconds))
                for source, seconds in zip(sources, spent, strict=True)
            ]
        pixels = [task.result() for task in made]
        sound = {index: each for index, each in enumerate(pixels) if not isinstance(each, VisiontowerError)}
        futures = self._threads.submit_set(resident, shape, list(sound.values()), deadline=deadline)
        answers = dict(zip(sound, await _gathered(futures), strict=True))
        outcomes: list[Outcome] = []
        for index, each in enumerate(pixels):
            answer = each if isinstance(each, VisiontowerError) else answers[index]
            if isinstance(answer, Answer):
                outcomes.append(self._encoded(answer, spent[index], shape.model))
            else:
                outcomes.append(answer)
        return outcomes

    async def _made(
        self, source: Source, encoder: Encoder, size: ImageSize, spent: _Spent
    ) -> Pixels | VisiontowerError:
        try:
            if isinstance(source, VisiontowerError):
                raise source
            if isinstance(source, ImageUrl):
                source = await self._fetch(source, spent)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._pixels, source, encoder, size, spent)
        except VisiontowerError as error:
            return error

    def _encoded(self, answer: Answer[Encoded], spent: _Spent, model: str) -> EncodedImage:
        self._metrics.image(model, fetch_s=spent.fetch, decode_s=spent.decode, preprocess_s=spent.preprocess)
        timing = Timing(spent.fetch, spent.decode, spent.preprocess, answer.queue_s, answer.forward_s)
        return EncodedImage(answer.row, timing)

    async def _fetch(self, source: ImageUrl, spent: _Spent) -> bytes:
        started = self._clock()
        fetched = await self._fetcher.fetch(source.url)
        spent.fetch = self._clock() - started
        return fetched

    def _pixels(self, source: bytes | Path, encoder: Encoder, size: ImageSize, spent: _Spent) -> Pixels:
        """Decode and preprocess. On the pool."""
        started = self._clock()
        image_bytes = source if isinstance(source, bytes) else _read(source)
        at_least = None if self._exact_pixels else enough(encoder.spec.preprocessing, size)
        image = decode(image_bytes, max_pixels=self._max_image_pixels, at_least=at_least)
        decoded = self._clock()
        spent.decode = decoded - started
        try:
            pixels = encoder.preprocess(image, size, exact=self._exact_pixels)
        except VisiontowerError:
            raise
        except Exception as error:
            _log.exception("preprocessing a %dx%d image failed", image.height, image.width)
            raise EncoderFailed(f"{encoder.spec.id} could not preprocess the image.", model=encoder.spec.id) from error
        spent.preprocess = self._clock() - decoded
        return pixels


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadable(path, reason=error.strerror or type(error).__name__) from error


async def _gathered(futures: Sequence["asyncio.Future[Answer[Encoded]]"]) -> list[Answer[Encoded] | VisiontowerError]:
    """Every future's answer or error, in order; if the wait is cancelled, so are they."""
    if not futures:
        return []
    try:
        await asyncio.wait(futures)
    finally:
        for future in futures:
            future.cancel()
    answers: list[Answer[Encoded] | VisiontowerError] = []
    for future in futures:
        error = future.exception()
        if error is None:
            answers.append(future.result())
        elif isinstance(error, VisiontowerError):
            answers.append(error)
        else:
            raise error
    return answers
