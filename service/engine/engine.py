"""The service itself: what lives from start to shutdown, and the two things it does, `embed` and `similarity`.

Read these two functions for the path of a request: options, then the door, then the pipeline, then the answer.
Knows no HTTP: it is given a parsed body and gives rendered bytes.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from encoders.contract.encoder import Encoder
from encoders.contract.errors import VisiontowerError
from encoders.contract.values import TokenKind
from encoders.memory.device import Memory
from service.engine import scoring as similarity
from service.engine.admission import Door
from service.engine.fetcher import Fetcher
from service.engine.images import EncodedImage, Outcome, Pipeline, Stages
from service.engine.models import Fleet, Load
from service.engine.postprocess import finish
from service.engine.scoring import Prompts
from service.errors import HeatmapTooLarge, InvalidOption, NoImages, ShuttingDown
from service.http.protocols.native import options as opts
from service.http.protocols.native import responses
from service.http.protocols.native.negotiation import choose
from service.http.protocols.native.options import EmbedOptions, Format, SimilarityOptions, VramOptions
from service.http.protocols.native.responses import Rendered
from service.http.request import Body
from service.memory.budget import Budget
from service.memory.measurement import Meter
from service.memory.planner import Blueprint, Planner
from service.scheduling.device_threads import Batcher, Report
from service.scheduling.queue import BatchKey, ImageKey, TextKey, image_key
from service.scheduling.throughput import Pace
from service.settings import Settings
from service.telemetry.metrics import Metrics

R = TypeVar("R")
T = TypeVar("T")
_log = logging.getLogger(__name__)
_INLINE_VALUES = 16_384
"""Answers up to this many numbers are written on the event loop: cheaper than the way to another thread and back."""


@dataclass(frozen=True)
class Backend:
    """The device, and what brings encoders onto it. memory is called once, before the rest.

    lanes, take_cores: as Batcher's.
    """

    load: Load
    blueprint: Blueprint
    memory: Callable[[], Memory]
    lanes: Callable[[], int] = lambda: 1
    take_cores: Callable[[int], None] = lambda part: None


class Service:
    """Encoders, queue, pools and limits of one server. Made on the event loop; `start`, use, `drain`, `stop`."""

    def __init__(
        self,
        settings: Settings,
        *,
        backend: Backend,
        metrics: Metrics,
        clock: Callable[[], float],
        on_lost: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.memory = backend.memory()
        lanes = backend.lanes()
        self.budget = Budget(limit=_limit(settings, self.memory), overhead=self.memory.overhead, lanes=lanes)
        self.memory.limit(self.budget.limit)
        self.door = Door(images=settings.queue_images, texts=settings.queue_texts, clock=clock)
        self.batcher = Batcher(
            ceiling=self._ceiling,
            clock=clock,
            begin=Meter(self.memory, self.budget, metrics).begin,
            observe=self._observe,
            on_lost=on_lost,
            shares_cores=self.memory.device == "cpu",
            lanes=lanes,
            runs_alone=self.budget.runs_alone,
            take_cores=backend.take_cores,
        )
        self.planner = Planner(backend.blueprint, device=self.memory.device.partition(":")[0], budget=self.budget)
        self.fleet = Fleet(
            settings.model,
            load=backend.load,
            memory=self.memory,
            budget=self.budget,
            planner=self.planner,
            batcher=self.batcher,
            clock=clock,
            when_full=settings.when_full,
            evict_idle_s=settings.evict_idle_s,
        )
        self._pace = Pace(longest_s=settings.max_forward_s)
        self._clock = clock
        # With one more than that the threads of a forward wait for each other's turn.
        all_but_one = max(1, (os.cpu_count() or 1) - 1)
        threads = all_but_one if settings.preprocess_threads == "auto" else settings.preprocess_threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="preprocess")
        self._answer_pool = ThreadPoolExecutor(2, thread_name_prefix="answer")
        self._rehearsal: asyncio.Task[None] | None = None
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
            exact_pixels=settings.exact_pixels,
        )
        metrics.watch(snapshot=self.batcher.snapshot, is_ready=self.is_model_ready, memory=self._memory_kinds)

    async def start(self) -> None:
        """Load the encoders and try them. Raises what Fleet.start raises: an encoder that does not work is fatal."""
        self.batcher.start()
        await self.fleet.start()
        self._rehearsal = asyncio.create_task(self.planner.rehearse(self.fleet.specs))

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
        for model in self.fleet.loaded:
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
        if self._rehearsal is not None:
            await _ended(self._rehearsal)
        await self.batcher.stop(timeout_s=5.0)
        self.planner.close()
        await self._fetcher.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._answer_pool.shutdown(wait=False, cancel_futures=True)

    async def embed(self, body: Body, *, query: opts.Query, accept: str, started: float) -> Rendered:
        """Images -> tokens and pooled vectors, as the options want them, in the format the caller accepts."""
        options = opts.read(EmbedOptions, query=query, body=body.fields)
        format = _format(options, accept)
        model = self.fleet.id_of(options.model)
        spec = self.fleet.specs[model]
        key = image_key(model, spec.size(options.resolution), options.outputs(spec))
        _require_images(body)
        async with self._admitted(key, images=len(body.images)) as encoder:
            outcomes = await self._pipeline.images(
                body.images, encoder=encoder, key=key, deadline=self._deadline(started)
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

    async def similarity(self, body: Body, *, query: opts.Query, accept: str, started: float) -> Rendered:
        """Images x texts -> cosine, logits and probabilities."""
        options = opts.read(SimilarityOptions, query=query, body=body.fields)
        choose(accept, asked=options.format, offered=("json",))
        model = self.fleet.id_of(options.model)
        spec = self.fleet.specs[model]
        spec.require_text()
        size = spec.size(options.resolution)
        key = image_key(model, size, spec.outputs(pooled=True, tokens=TokenKind.DENSE if options.heatmap else None))
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
        async with self._admitted(key, images=len(body.images), texts=len(prompts.unique)) as encoder:
            scoring = encoder.spec.require_text()
            embedding = asyncio.create_task(self._pipeline.texts(prompts.unique, encoder=encoder, deadline=deadline))
            try:
                outcomes = await self._pipeline.images(body.images, encoder=encoder, key=key, deadline=deadline)
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

    async def vram(self, *, query: opts.Query) -> dict[str, object]:
        """What forwards would take, and what fits the budget beside what is loaded. Nothing is run."""
        options = opts.read(VramOptions, query=query, body=[])
        model = self.fleet.id_of(options.model)
        spec = self.fleet.specs[model]
        sizes = [spec.size(size) for size in options.resolution] or [spec.image_size]
        rows = await self.planner.table(
            model, sizes, options.batch, options.outputs(spec), dtypes=options.dtype or (None,)
        )
        about = {"model": model, "device": self.memory.device, "budget_bytes": self.budget.total}
        return {"object": "list", **about, "data": rows} if options.is_table else {**about, **rows[0]}

    @asynccontextmanager
    async def _admitted(self, key: ImageKey, *, images: int, texts: int = 0) -> AsyncIterator[Encoder]:
        """The encoder, with room on its device for this shape, and places behind the door, for the block.

        Raises Overloaded, ShuttingDown, ImageDoesNotFit, ModelDoesNotFit or ModelWaitsForRoom.
        """
        keys: list[BatchKey] = [key, *([TextKey(key.model)] if texts else [])]
        with self.door.admit(images=images, texts=texts):
            async with self.fleet.using(key.model) as encoder:
                await self.planner.cost(key)
                if not await self.fleet.require_room(key):
                    self.metrics.admission("refused")
                    raise await self.planner.refusal(key)
                with self.budget.inside(*keys):
                    yield encoder

    def _memory_kinds(self) -> tuple[str, dict[str, int]]:
        kinds = {"weights": self.budget.weights, "budget": self.budget.total, **self.memory.figures()._asdict()}
        return self.memory.device, kinds

    def _ceiling(self, key: BatchKey) -> int:
        """On any thread, under the queue's lock."""
        cost = self.budget.cost(key)
        by_time = 1 if cost is None else self._pace.ceiling((type(key), key.model), flops=cost.flops)
        ceiling = min(self.budget.ceiling(key), by_time)
        return ceiling if self.settings.max_batch == "auto" else min(ceiling, self.settings.max_batch)

    def _observe(self, report: Report) -> None:
        """On a device thread."""
        model = report.key.model
        cost = self.budget.cost(report.key)
        if cost is not None:
            flops = cost.flops * report.items
            self._pace.ran((type(report.key), model), flops=flops, seconds=report.forward_s)
        cut = report.left and report.items >= self.budget.ceiling(report.key)
        self.metrics.admission("split" if cut else "whole")
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


def _limit(settings: Settings, memory: Memory) -> int:
    """Bytes for weights and forwards: the budget without the context, or the share of what is free beside it."""
    if settings.vram_budget == "auto":
        return int(settings.vram_share * memory.figures().free)
    return settings.vram_budget - memory.overhead.context


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
