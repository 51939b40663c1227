"""One image's way: fetch, decode, preprocess, queue, forward. Knows the order and where each step runs; no HTTP.

Decode, preprocess and tokenise run on the CPU pool, forwards on the device threads, the waiting on the event loop.
Everything that depends on one caller's bytes is over before the image can share a batch.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np

from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, NonFiniteOutput, VisiontowerError
from encoders.contract.values import Encoded, Floats, ImageSize, Pixels
from encoders.images.decode import decode
from encoders.images.preprocess import enough
from service.engine.fetcher import Fetcher
from service.errors import DeadlineExceeded, Unavailable
from service.http.request import Source
from service.scheduling.batch import is_finite
from service.scheduling.device_threads import Batcher
from service.scheduling.queue import ImageKey, TextKey
from service.telemetry.metrics import Metrics

R = TypeVar("R")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stages:
    """Seconds an image spent on its way."""

    fetch: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0
    queue: float = 0.0
    forward: float = 0.0

    @classmethod
    def slowest(cls, all_stages: Iterable["Stages"]) -> "Stages":
        """Stage by stage, the longest of several images that travelled side by side."""
        listed = list(all_stages)
        if len(listed) == 1:
            return listed[0]
        return cls(**{f.name: max((getattr(s, f.name) for s in listed), default=0.0) for f in fields(cls)})


@dataclass(frozen=True)
class EncodedImage:
    """A row, and how long it took."""

    row: Encoded
    stages: Stages


Outcome: TypeAlias = EncodedImage | VisiontowerError
"""What became of one image of a request."""


class Pipeline:
    """Takes images and texts through their stages."""

    def __init__(
        self,
        *,
        batcher: Batcher,
        fetcher: Fetcher,
        pool: Executor,
        metrics: Metrics,
        clock: Callable[[], float],
        max_image_pixels: int,
        exact_pixels: bool,
    ) -> None:
        self._batcher = batcher
        self._fetcher = fetcher
        self._pool = pool
        self._metrics = metrics
        self._clock = clock
        self._max_image_pixels = max_image_pixels
        self._exact_pixels = exact_pixels

    async def images(
        self, sources: Sequence[Source], *, encoder: Encoder, key: ImageKey, deadline: float
    ) -> list[Outcome]:
        """One outcome an image, in order: a bad one is an error at its index, the others are answered.

        Raises what is true of the whole request: Unavailable or DeadlineExceeded.
        """
        one = partial(self._image, encoder=encoder, key=key, deadline=deadline)
        if len(sources) == 1:
            outcomes = [await one(sources[0])]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(source)) for source in sources]
            outcomes = [task.result() for task in tasks]
        for outcome in outcomes:
            if isinstance(outcome, Unavailable | DeadlineExceeded):
                raise outcome
        return outcomes

    async def texts(self, texts: Sequence[str], *, encoder: Encoder, deadline: float) -> Floats:
        """Embeddings float32 [N, embed_dim], not normalised.

        Raises OutputNotOffered, InvalidText, EncoderFailed, Unavailable or DeadlineExceeded.
        """
        ids = await self.on_pool(encoder.tokenize, texts)
        key = TextKey(encoder.spec.id)
        futures = [self._batcher.submit(key, row, deadline=deadline) for row in ids]
        try:
            answers = await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()
        rows: Floats = np.stack([answer.row for answer in answers]).astype(np.float32)
        if not is_finite(rows):
            raise NonFiniteOutput(encoder=encoder.spec.id)
        return rows

    async def on_pool(self, function: Callable[..., R], *args: object) -> R:
        """Run CPU work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def _image(self, source: Source, *, encoder: Encoder, key: ImageKey, deadline: float) -> Outcome:
        try:
            image_bytes, fetch_s = await self._bytes(source)
            spent: list[float] = []
            make = partial(self._prepare, image_bytes, encoder, key.size, spent)
            answer = await self._batcher.submit_made(key, make, pool=self._pool, deadline=deadline)
        except VisiontowerError as error:
            return error
        decode_s, preprocess_s = spent
        stages = Stages(fetch_s, decode_s, preprocess_s, answer.queue_s, answer.forward_s)
        if fetch_s:
            self._metrics.stage(encoder.spec.id, "fetch", fetch_s)
        self._metrics.stage(encoder.spec.id, "decode", decode_s)
        self._metrics.stage(encoder.spec.id, "preprocess", preprocess_s)
        return EncodedImage(answer.row, stages)

    async def _bytes(self, source: Source) -> tuple[bytes, float]:
        """The image's bytes, and the seconds of fetching them."""
        if isinstance(source, VisiontowerError):
            raise source
        if isinstance(source, bytes):
            return source, 0.0
        started = self._clock()
        return await self._fetcher.fetch(source.url), self._clock() - started

    def _prepare(self, image_bytes: bytes, encoder: Encoder, size: ImageSize, spent: list[float]) -> Pixels:
        """Pixels. spent: takes the seconds of decode and of preprocess. On the pool."""
        started = self._clock()
        at_least = None if self._exact_pixels else enough(encoder.spec.preprocessing, size)
        image = decode(image_bytes, max_pixels=self._max_image_pixels, at_least=at_least)
        decoded = self._clock()
        try:
            pixels = encoder.preprocess(image, size, exact=self._exact_pixels)
        except VisiontowerError:
            raise
        except Exception as error:
            _log.exception("preprocessing a %dx%d image failed", image.height, image.width)
            raise EncoderFailed(f"{encoder.spec.id} could not preprocess the image.", model=encoder.spec.id) from error
        spent += decoded - started, self._clock() - decoded
        return pixels
