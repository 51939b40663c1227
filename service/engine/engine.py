"""The engine: request values in, result values out. Usable without a server.

    async with Engine(Settings(model=("demo:vit",))) as engine:
        result = await engine.embed(EmbedRequest([image_bytes], output="pooled"))

An image's road is docs/request-path.md.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, overload

from encoders.memory.device import Memory
from service.engine.admission import Admission
from service.engine.backend import Backend, real_backend
from service.engine.cache.opening import opened
from service.engine.decoding import Decoding, automatic_threads
from service.engine.fetcher import Fetcher
from service.engine.images import Images
from service.engine.label_sets import LabelSets
from service.engine.models import Models
from service.engine.postprocess import INLINE_VALUES, as_asked, embeddings
from service.engine.scoring import PromptLimits
from service.engine.similarity import Similarity
from service.engine.tasks import ended
from service.engine.templates import PLAIN
from service.engine.text_cache import TextCache
from service.engine.texts import Texts
from service.engine.values import (
    EmbedRequest,
    EmbedResult,
    ModelsRequest,
    ModelsResult,
    PlannedRow,
    PlanRequest,
    PlanResult,
    ReadyRequest,
    ReadyResult,
    Request,
    Result,
    SimilarityRequest,
    SimilarityResult,
    Sizes,
    Timing,
)
from service.errors import DeadlineExceeded, NoImages, ShuttingDown
from service.memory.account import Account, automatic_limit
from service.memory.budget import Budget
from service.memory.measurement import Measurement
from service.memory.planner import Planner
from service.memory.shape import ImageShape
from service.scheduling.device_threads import DeviceThreads
from service.scheduling.limits import BatchLimits
from service.scheduling.patience import Patience
from service.scheduling.watchdog import Watchdog
from service.settings import Settings
from service.telemetry.metrics import Metrics, ModelNow, Now

R = TypeVar("R")
_log = logging.getLogger(__name__)
_SHAPES = 1000
"""Questions whose shape is kept."""


class Engine:
    """Encoders, queue, pools and limits of one device. `async with`, on an event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        backend: Backend | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """backend: other encoders and another device than the settings say. metrics: for others to read.

        Raises SettingsError if this machine does not have what the settings ask for.
        """
        backend = backend or real_backend(settings)
        self.settings = settings
        self.metrics = metrics or Metrics(settings.model)
        self.clock = clock
        self.memory = backend.memory()
        self._cache = opened(settings, hardware=backend.hardware, metrics=self.metrics)
        lanes = backend.lanes()
        self.budget = Budget(limit=_limit(settings, self.memory), overhead=self.memory.overhead, lanes=lanes.number)
        self.memory.limit(self.budget.limit)
        self.account = Account(automatic_limit() if settings.memory_budget == "auto" else settings.memory_budget)
        self.admission = Admission(images=settings.queue_images, texts=settings.queue_texts, clock=clock)
        limits = BatchLimits(
            self.budget,
            longest_s=settings.max_forward_s,
            most=None if settings.max_batch == "auto" else settings.max_batch,
        )
        self.threads = DeviceThreads(
            limits=limits,
            measurement=Measurement(self.memory, self.budget, self.metrics),
            metrics=self.metrics,
            clock=clock,
            lanes=lanes,
            patience=Patience() if self.memory.device == "cpu" else None,
        )
        self._watchdog = Watchdog(self.threads, limits, clock=clock)
        self.planner = Planner(
            backend.blueprint,
            device=self.memory.device.partition(":")[0],
            budget=self.budget,
            places=settings.queue_plans,
        )
        self.models = Models(
            settings.model,
            load=backend.load,
            memory=self.memory,
            budget=self.budget,
            planner=self.planner,
            threads=self.threads,
            metrics=self.metrics,
            clock=clock,
            when_full=settings.when_full,
            evict_idle_s=settings.evict_idle_s,
        )
        workers = settings.preprocess_threads
        decoders = automatic_threads() if workers == "auto" else workers
        self._decoding = Decoding(self.account, threads=decoders, processes=max(2, decoders))
        self._answer_pool = ThreadPoolExecutor(2, thread_name_prefix="answer")
        self._rehearsal: asyncio.Task[None] | None = None
        self._fetcher = Fetcher(
            hosts=settings.image_url_hosts,
            max_bytes=settings.max_url_image_bytes,
            max_sum_bytes=settings.max_body_bytes,
            max_urls=max(settings.max_images, settings.queue_images // 2),
            timeout_s=settings.url_timeout_s,
            account=self.account,
        )
        self._images = Images(
            threads=self.threads,
            fetcher=self._fetcher,
            decoding=self._decoding,
            clock=clock,
            max_image_pixels=settings.max_image_pixels,
            exact_pixels=settings.exact_pixels,
            cache=self._cache,
        )
        self._shapes: dict[Hashable, ImageShape] = {}  # by the part of a request that decides
        self._sizes: dict[Hashable, Sizes] = {}  # of one image, likewise
        self._texts = Texts(
            threads=self.threads,
            account=self.account,
            cache=TextCache(settings.text_cache_bytes),
            limits=PromptLimits(settings.max_texts, settings.max_text_chars, settings.max_prompt_chars),
            pool=self._answer_pool,
        )
        self._label_sets = LabelSets(
            settings.label_sets,
            models=self.models,
            planner=self.planner,
            texts=self._texts,
            admission=self.admission,
            most_prompts=settings.max_texts,
            clock=clock,
        )
        self._similarity = Similarity(
            models=self.models,
            planner=self.planner,
            admission=self.admission,
            images=self._images,
            texts=self._texts,
            label_sets=self._label_sets,
            metrics=self.metrics,
            on_pool=self.on_pool,
            clock=clock,
            most_values=settings.max_heatmap_values,
            most_templates=settings.max_texts,
        )

    async def __aenter__(self) -> "Engine":
        """Load the encoders and try them. Raises as Models.start: an encoder that does not work is fatal."""
        try:
            self.threads.start()
            await self.models.start()
        except BaseException:
            await self.stop()
            raise
        self._rehearsal = asyncio.create_task(self.planner.rehearse(self.models.specs.values()))
        self._rehearsal.add_done_callback(_log_rehearsal)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End threads and connections. Work that is not awaited any more is dropped."""
        await self.stop()

    async def drain(self) -> None:
        """Admit nobody, let the admitted finish, and at the deadline of the settings fail the rest by name."""
        self.admission.close()
        self._label_sets.stop()
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await self.admission.empty()
        except TimeoutError:
            _log.warning("the drain deadline has passed: failing the requests that are left")
            self.threads.abandon(ShuttingDown())

    async def stop(self) -> None:
        """End threads and connections."""
        self.admission.close()
        if self._rehearsal is not None:
            await ended(self._rehearsal)
        self._label_sets.stop()
        await self._label_sets.stopped()
        await self.threads.stop(timeout_s=0.0 if self._watchdog.hang else 5.0)
        self.planner.close()
        self._texts.close()
        await self._fetcher.close()
        self._decoding.stop()
        if self._cache is not None:
            self._cache.close()
        self._answer_pool.shutdown(wait=False)

    @overload
    async def run(self, request: EmbedRequest, *, deadline: float | None = None) -> EmbedResult: ...
    @overload
    async def run(self, request: SimilarityRequest, *, deadline: float | None = None) -> SimilarityResult: ...
    @overload
    async def run(self, request: PlanRequest, *, deadline: float | None = None) -> PlanResult: ...
    @overload
    async def run(self, request: ModelsRequest, *, deadline: float | None = None) -> ModelsResult: ...
    @overload
    async def run(self, request: ReadyRequest, *, deadline: float | None = None) -> ReadyResult: ...
    async def run(self, request: Request, *, deadline: float | None = None) -> Result:
        """Answer any request. Raises the errors of the request's own method.

        deadline: on the clock, kept by the caller; None if the engine is to keep that of its setting.
        """
        match request:
            case EmbedRequest():
                return await self.embed(request, deadline=deadline)
            case SimilarityRequest():
                return await self.similarity(request, deadline=deadline)
            case PlanRequest():
                return await self.plan(request)
            case ModelsRequest():
                ids = self.models.ids if request.model is None else (self.models.id_of(request.model),)
                if request.among is not None:
                    ids = tuple(model for model in ids if model in request.among)
                states = {model: self.models.state(model) for model in ids}
                troubles = {model: state.trouble for model, state in states.items() if not state.can_serve}
                return ModelsResult([self.models.specs[model] for model in ids], troubles)
            case ReadyRequest():
                model = None if request.model is None else self.models.id_of(request.model)
                return ReadyResult(await self.why_not_ready(model))

    async def sizes(self, request: Request) -> Sizes:
        """What the request will take if no image fails. Nothing is run; a CNN's stage is planned.

        Raises what the request itself would raise for an option that cannot be.
        """
        match request:
            case EmbedRequest():
                numbers, pixel_bytes = await self._sizes_of_image(request) if request.sources else Sizes(0, 0)
                images = len(request.sources)
                if not request.texts:
                    return Sizes(images * numbers, images * pixel_bytes)
                spec = self.models.specs[self.models.id_of(request.model)]
                of_texts = len(request.texts) * (spec.embed_dim or 0)
                return Sizes(images * numbers + of_texts, images * pixel_bytes)
            case SimilarityRequest():
                return self._similarity.sizes(request, self.models.specs[self.models.id_of(request.model)])
            case _:
                return Sizes(0, 0)

    async def _sizes_of_image(self, request: EmbedRequest) -> Sizes:
        asked = (request.model, request.resolution, request.output, request.layer, request.project, request.tiles)
        known = self._sizes.get(asked)
        if known is None:
            spec = self.models.specs[self.models.id_of(request.model)]
            size, outputs = spec.size(request.resolution), request.outputs(spec)
            width, tokens = spec.tokens_width(outputs), spec.token_count(size, outputs)
            tokens = spec.most_joined if request.tiles else tokens
            if width is None or tokens is not None:
                numbers = (width or 0) * (tokens or 0) + spec.pooled_size * outputs.pooled
            else:  # a CNN's stage: only a forward, or its plan, knows its grid
                shape = await self.planner.image_shape(spec.id, size, outputs)
                numbers = shape.cost.output_bytes // (4 if spec.dtype == "float32" else 2)
            known = Sizes(numbers, 3 * math.prod(size) * (spec.most_views if request.tiles else 1))
            if len(self._sizes) > _SHAPES:
                self._sizes.clear()
            self._sizes[asked] = known
        return known

    async def embed(self, request: EmbedRequest, *, deadline: float | None = None) -> EmbedResult:
        """Images -> tokens and pooled vectors, one item an image; texts -> vectors. deadline: as of `run`.

        Raises RequestError, UnknownModel, LimitExceeded, Unavailable, DeadlineExceeded, ModelDoesNotFit, EncoderFailed.
        """
        if request.width is not None:
            request.require_width(self.models.specs[self.models.id_of(request.model)], request.width)
        work = self._embed_with_texts if request.texts else self._embed
        if deadline is not None and request.timeout_s is None:
            return await work(request, self.clock(), deadline)
        return await self._in_time(request.timeout_s, partial(work, request))

    async def similarity(self, request: SimilarityRequest, *, deadline: float | None = None) -> SimilarityResult:
        """Images x texts -> scores, one item an image. Raises as `embed`, NoTexts and HeatmapTooLarge."""
        if deadline is not None and request.timeout_s is None:
            return await self._similarity.of(request, self.clock(), deadline)
        return await self._in_time(request.timeout_s, partial(self._similarity.of, request))

    async def _in_time(self, timeout_s: float | None, work: Callable[[float, float], Coroutine[Any, Any, R]]) -> R:
        """The work's result; it is told when it started and its deadline, on the clock. Raises DeadlineExceeded."""
        started = self.clock()
        timeout_s = self.settings.request_timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(timeout_s if timeout_s < math.inf else None) as limit:
                return await work(started, started + timeout_s)
        except TimeoutError as error:
            if not limit.expired():  # somebody else's: of a download, say
                raise
            raise DeadlineExceeded from error

    async def _embed(self, request: EmbedRequest, started: float, deadline: float) -> EmbedResult:
        if not request.sources:
            raise NoImages
        asked = (
            request.model, request.resolution, request.output, request.layer, request.project, request.prefix,
            request.tiles,
        )  # fmt: skip
        shape = self._shapes.get(asked)
        views = self.models.specs[self.models.id_of(request.model)].most_views if request.tiles else 1
        with self.admission.admit(images=len(request.sources) * views):
            if shape is None:
                spec = self.models.specs[self.models.id_of(request.model)]
                shape = await self.planner.image_shape(spec.id, spec.size(request.resolution), request.outputs(spec))
                if len(self._shapes) > _SHAPES:
                    self._shapes.clear()
                self._shapes[asked] = shape
            async with self.models.using(shape.model, shape) as resident:
                images = await self._images.encode(
                    request.sources,
                    resident=resident,
                    shape=shape,
                    started=started,
                    deadline=deadline,
                    is_set=request.is_set,
                    in_tiles=request.tiles,
                )
                finish = partial(embeddings, images, request, model=shape.model)
                result = finish() if images.values <= INLINE_VALUES else await self.on_pool(finish)
        self.metrics.answered(shape.model, tokens=result.tokens, all_stages=images.stages)
        return result

    async def _embed_with_texts(self, request: EmbedRequest, started: float, deadline: float) -> EmbedResult:
        model = self.models.id_of(request.model)
        wanted = self._texts.wanted(request.texts, PLAIN, self.models.specs[model], is_set=request.is_set)
        of_images: asyncio.Task[EmbedResult] | None = None
        with self.admission.admit(images=0, texts=wanted.prompts), self._texts.hold(wanted.nbytes):
            if request.sources:
                of_images = asyncio.create_task(self._embed(replace(request, texts=()), started, deadline))
            try:
                shape = await self.planner.text_shape(model)
                async with self.models.using(model, shape) as resident:
                    tokenized = await self._texts.tokenize(wanted, resident=resident, truncate=request.truncate)
                    found = await self._texts.embed(tokenized, resident=resident, shape=shape, deadline=deadline)
                result = EmbedResult(model, [], Timing(), 0, 0) if of_images is None else await of_images
            finally:
                if of_images is not None:
                    await ended(of_images)
        finish = partial(as_asked, found.vectors, normalize=request.normalize, dtype=request.dtype)
        texts = finish() if found.vectors.size <= INLINE_VALUES else await self.on_pool(finish)
        return replace(
            result,
            timing=replace(result.timing, total=self.clock() - started),
            values=result.values + found.vectors.size,
            texts=texts,
            truncated=found.truncated,
            text_tokens=sum(min(tokens, resident.spec.context_length or 0) for tokens in found.tokens),
        )

    async def plan(self, request: PlanRequest) -> PlanResult:
        """What forwards would take, and what fits the budget beside the other models. Nothing is run.

        Raises UnknownModel, UnsupportedResolution, LayerNotFound, OutputNotOffered or EncoderFailed.
        """
        model = self.models.id_of(request.model)
        spec = self.models.specs[model]
        sizes = [spec.size(size) for size in request.resolutions] or [spec.image_size]
        outputs = request.outputs(spec)
        rows = await self.planner.table(model, sizes, request.batches, outputs, dtypes=request.dtypes or (None,))
        planned = [PlannedRow(spec, row, largest) for spec, row, largest in rows]
        return PlanResult(model, self.memory.device, self.budget.total, planned)

    def watch(self) -> None:
        """See whether the device hangs; to be called several times a second. Then whoever waits for it is answered."""
        self._watchdog.look()
        if self.is_hung and self.threads.refusal is None:
            assert self._watchdog.hang is not None
            self.threads.abandon(self._watchdog.hang)

    @property
    def is_hung(self) -> bool:
        """Whether the device hangs and the process is to end for it (setting on_hang)."""
        return self._watchdog.hang is not None and self.settings.on_hang == "exit"

    async def why_not_ready(self, model: str | None = None) -> str | None:
        """None if requests are admitted and can be answered: those for this model, or for any if None.

        Failing models are tried once more, if that has not just been done. The answer does not wait for a device that
        is at work.
        """
        if not self.admission.is_open:
            return "draining"
        if not self.threads.is_alive:
            return "the device thread has ended"
        if self.threads.refusal is not None:
            return str(self.threads.refusal)
        models = self.models.ids if model is None else (model,)
        await self.models.probe(models)
        states = [self.models.state(each) for each in models]
        if any(state.can_serve for state in states):
            return None
        return "; ".join(f"{each} {state.trouble}" for each, state in zip(models, states, strict=True))

    def now(self) -> Now:
        """The gauges of the metrics."""
        models = {}
        for model in self.models.ids:
            images, oldest_s = self.threads.waiting(model)
            spec = self.models.specs[model]
            facts = {"revision": spec.revision, "dtype": spec.dtype, "device": spec.device, "runtime": spec.runtime}
            models[model] = ModelNow(images, oldest_s, self.models.state(model).state, facts)
        kinds = {"weights": self.budget.weights, "budget": self.budget.total, **self.memory.figures()._asdict()}
        held = {**self.account.held, "limit": self.account.limit}
        return Now(models, self.memory.device, kinds, held, self._cache.nbytes if self._cache is not None else {})

    async def on_pool(self, function: Callable[[], R]) -> R:
        """Run a function over many numbers on a thread, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._answer_pool, function)


def _limit(settings: Settings, memory: Memory) -> int:
    """Bytes for weights and forwards: the budget without the context, or the share of what is free beside it.

    What is set aside for CUDA graphs is a part of either.
    """
    if settings.vram_budget == "auto":
        return int(settings.vram_share * memory.figures().free) - memory.overhead.graphs
    return settings.vram_budget - memory.overhead.context


def _log_rehearsal(done: asyncio.Task[None]) -> None:
    """Planning ahead is a convenience: its failure is said, and the first request that needs the plan will meet it."""
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.error("the common forwards could not be planned ahead", exc_info=error)
