"""The service itself: what lives from start to shutdown, and the two things it does, `embed` and `similarity`.

Read these two functions for the path of a request: options, then the door, then the pipeline, then the answer.
Knows no HTTP: it is given a parsed body and gives rendered bytes.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias, TypeVar

from encoders.errors import VisiontowerError
from encoders.types import Encoder, TokenKind
from service import options as opts
from service import responses, similarity
from service.batcher import Batcher, Report
from service.batching import BatchKey, ImageKey
from service.door import Door
from service.errors import HeatmapTooLarge, InvalidOption, NoImages, ShuttingDown, UnknownModel
from service.fetch import Fetcher
from service.metrics import Metrics
from service.negotiation import choose
from service.options import EmbedOptions, Format, SimilarityOptions
from service.pipeline import EncodedImage, Outcome, Pipeline, Stages
from service.requests import Body
from service.responses import Rendered
from service.settings import Settings
from service.similarity import Prompts
from service.tensors import finish

Load: TypeAlias = Callable[[str], Encoder]
"""Encoder id -> the encoder, ready to run. Called on the device thread."""

R = TypeVar("R")
T = TypeVar("T")
_log = logging.getLogger(__name__)
_INLINE_VALUES = 16_384
"""Answers up to this many numbers are written on the event loop: cheaper than the way to another thread and back."""


class Service:
    """Encoders, queue, pools and limits of one server. Made on the event loop; `start`, use, `drain`, `stop`."""

    def __init__(
        self,
        settings: Settings,
        *,
        load: Load,
        metrics: Metrics,
        clock: Callable[[], float],
        on_lost: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.encoders: dict[str, Encoder] = {}
        self.door = Door(images=settings.queue_images, texts=settings.queue_texts, clock=clock)
        self.batcher = Batcher(ceiling=self._ceiling, clock=clock, observe=self._observe, on_lost=on_lost)
        self._load = load
        self._clock = clock
        threads = settings.preprocess_threads if settings.preprocess_threads != "auto" else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="preprocess")
        self._answer_pool = ThreadPoolExecutor(2, thread_name_prefix="answer")
        self._fetcher = Fetcher(
            hosts=settings.image_url_hosts, max_bytes=settings.max_url_image_bytes, timeout_s=settings.url_timeout_s
        )
        self._pipeline = Pipeline(
            batcher=self.batcher,
            fetcher=self._fetcher,
            pool=self._pool,
            metrics=metrics,
            clock=clock,
            max_image_pixels=settings.max_image_pixels,
        )
        metrics.watch(snapshot=self.batcher.snapshot, is_ready=self.is_model_ready)

    async def start(self) -> None:
        """Load every encoder and try it. Raises what loading raises: an encoder that does not work is fatal."""
        self.batcher.start()
        for place, model in enumerate(self.settings.model, start=1):
            _log.info("loading %s (%d of %d)", model, place, len(self.settings.model))
            started = self._clock()
            try:
                self.encoders[model] = await self.batcher.add(model, partial(self._load, model))
            except Exception as error:
                _log.critical("cannot serve %s: %s", model, error)
                raise
            spec = self.encoders[model].spec
            _log.info("loaded %s on %s in %s in %.1f s", model, spec.device, spec.dtype, self._clock() - started)

    def is_model_ready(self, model: str) -> bool:
        """Whether this model can be asked."""
        return self.batcher.is_alive and self.batcher.is_healthy(model)

    async def why_not_ready(self) -> str | None:
        """None if every model is ready and the server takes requests. A failed model is tried once more."""
        if not self.door.is_open:
            return "draining"
        if not self.batcher.is_alive:
            return "the device thread has ended"
        if self.batcher.busy_s > self.settings.request_timeout_s:
            return "the device is stuck in a forward"
        for model in self.settings.model:
            if not self.batcher.is_healthy(model) and not await self.batcher.probe(model):
                return f"{model} fails"
        return None

    async def drain(self) -> None:
        """Admit nobody, let the admitted finish, and at the deadline fail the rest by name."""
        self.door.close()
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await self.door.empty()
        except TimeoutError:
            _log.warning("the drain deadline has passed: failing what is left")
            self.batcher.abandon(ShuttingDown())

    async def stop(self) -> None:
        """End threads and connections."""
        self.door.close()
        await self.batcher.stop(timeout_s=5.0)
        await self._fetcher.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._answer_pool.shutdown(wait=False, cancel_futures=True)

    def encoder(self, model: str | None) -> Encoder:
        """The encoder of this id, the first served if None. Raises UnknownModel."""
        if model is None:
            return self.encoders[self.settings.model[0]]
        if model not in self.encoders:
            raise UnknownModel(model, served=self.settings.model)
        return self.encoders[model]

    async def embed(self, body: Body, *, query: opts.Pairs, accept: str, started: float) -> Rendered:
        """Images -> tokens and pooled vectors, as the options want them, in the format the caller accepts."""
        options = opts.read(EmbedOptions, query=query, body=body.fields)
        format = _format(options, accept)
        encoder = self.encoder(options.model)
        model = encoder.spec.id
        size = encoder.spec.size(options.resolution)
        outputs = options.outputs(encoder.spec)
        _require_images(body)
        with self.door.admit(images=len(body.images)):
            outcomes = await self._pipeline.images(
                body.images, encoder=encoder, size=size, outputs=outputs, deadline=self._deadline(started)
            )
            timing_ms = self._timing_ms(model, outcomes, started)

            def answer() -> tuple[Rendered, int]:
                items = _map(outcomes, lambda encoded: finish(encoded.row, options, model=model))
                _raise_if_alone(items)
                answered = responses.Answered(model, items, timing_ms)
                rendered = responses.render(answered, format=format, encoding=options.encoding_format)
                return rendered, answered.usage["tokens"]

            rendered, tokens = await self._serialize(answer, outcomes, model)
        self.metrics.answered(model, tokens)
        return rendered

    async def similarity(self, body: Body, *, query: opts.Pairs, accept: str, started: float) -> Rendered:
        """Images x texts -> cosine, logits and probabilities."""
        options = opts.read(SimilarityOptions, query=query, body=body.fields)
        choose(accept, asked=options.format, offered=("json",))
        encoder = self.encoder(options.model)
        spec = encoder.spec
        scoring = spec.require_text()
        size = spec.size(options.resolution)
        outputs = spec.outputs(pooled=True, tokens=TokenKind.DENSE if options.heatmap else None)
        _require_images(body)
        prompts = Prompts.of(
            options.texts,
            options.templates,
            max_texts=self.settings.max_texts,
            max_chars=self.settings.max_text_chars,
        )
        if options.heatmap:
            rows, cols = spec.grid(size)
            values = len(body.images) * len(options.texts) * rows * cols
            if values > self.settings.max_heatmap_values:
                raise HeatmapTooLarge(actual=values, limit=self.settings.max_heatmap_values)
        deadline = self._deadline(started)
        with self.door.admit(images=len(body.images), texts=len(prompts.unique)):
            embedding = asyncio.create_task(self._pipeline.texts(prompts.unique, encoder=encoder, deadline=deadline))
            try:
                outcomes = await self._pipeline.images(
                    body.images, encoder=encoder, size=size, outputs=outputs, deadline=deadline
                )
                embedded = await embedding
            finally:
                await _ended(embedding)
            timing_ms = self._timing_ms(spec.id, outcomes, started)

            def answer() -> Rendered:
                vectors = prompts.vectors(embedded)
                items = _map(outcomes, lambda encoded: similarity.score(encoded.row, vectors, scoring, model=spec.id))
                _raise_if_alone(items)
                return similarity.render(
                    items, model=spec.id, scoring=scoring, heatmap=options.heatmap, timing_ms=timing_ms
                )

            return await self._serialize(answer, outcomes, spec.id)

    async def _serialize(self, answer: Callable[[], R], outcomes: list[Outcome], model: str) -> R:
        """Run `answer` where its size says."""
        started = self._clock()
        if _values(outcomes) <= _INLINE_VALUES:
            result = answer()
        else:
            result = await asyncio.get_running_loop().run_in_executor(self._answer_pool, answer)
        self.metrics.stage(model, "serialize", self._clock() - started)
        return result

    def _ceiling(self, key: BatchKey) -> int:
        return self.settings.max_batch

    def _observe(self, report: Report) -> None:
        """On the device thread."""
        model = report.key.model
        self.metrics.stage(model, "forward", report.forward_s)
        for queue_s in report.queue_s:
            self.metrics.stage(model, "queue", queue_s)
        if isinstance(report.key, ImageKey):
            self.metrics.batch(model, report.key.size, report.items)

    def _deadline(self, started: float) -> float:
        return started + self.settings.request_timeout_s

    def _timing_ms(self, model: str, outcomes: list[Outcome], started: float) -> dict[str, float]:
        stages = Stages.slowest(outcome.stages for outcome in outcomes if isinstance(outcome, EncodedImage))
        seconds = {name: getattr(stages, name) for name in ("decode", "preprocess", "queue", "forward")}
        if stages.fetch:
            seconds = {"fetch": stages.fetch, **seconds}
        seconds["total"] = self._clock() - started
        return {name: round(1000 * value, 3) for name, value in seconds.items()}


def _format(options: EmbedOptions, accept: str) -> Format:
    """Raises NotAcceptable, or InvalidOption where the format cannot hold what is asked for."""
    format = choose(accept, asked=options.format)
    if format in ("npy", "raw") and options.output == "both":
        raise InvalidOption("output", f"The format {format} holds one array: ask for tokens or pooled, or safetensors.")
    if format == "npy" and options.dtype == "bfloat16":
        raise InvalidOption("dtype", "The format npy has no bfloat16: ask for float32 or float16, or safetensors.")
    return format


def _require_images(body: Body) -> None:
    if not body.images:
        raise NoImages


def _map(outcomes: list[Outcome], function: Callable[[EncodedImage], T]) -> list[T | VisiontowerError]:
    """`function` of each encoded image; what it raises is that image's error."""
    items: list[T | VisiontowerError] = []
    for outcome in outcomes:
        try:
            items.append(function(outcome) if isinstance(outcome, EncodedImage) else outcome)
        except VisiontowerError as error:
            items.append(error)
    return items


def _raise_if_alone(items: Sequence[object]) -> None:
    """The error of a request's only image is the answer itself."""
    if len(items) == 1 and isinstance(items[0], VisiontowerError):
        raise items[0]


def _values(outcomes: list[Outcome]) -> int:
    rows = [outcome.row for outcome in outcomes if isinstance(outcome, EncodedImage)]
    return sum(array.size for row in rows for array in (row.tokens, row.pooled) if array is not None)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel the task if it still runs, and take its error, which somebody else has raised already."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
