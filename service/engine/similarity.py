"""Images against texts, or against a named set of labels: both are embedded side by side, and then compared."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

from encoders.contract.spec import EncoderSpec
from encoders.contract.values import TokenKind
from service.engine.admission import Admission
from service.engine.images import Images
from service.engine.label_sets import KnownLabels, LabelSets
from service.engine.models import Models
from service.engine.postprocess import INLINE_VALUES
from service.engine.scoring import similarities
from service.engine.tasks import ended
from service.engine.templates import NAMED
from service.engine.texts import Texts, WantedTexts
from service.engine.values import SimilarityRequest, SimilarityResult, Sizes
from service.errors import HeatmapTooLarge, NoImages
from service.memory.planner import Planner
from service.telemetry.metrics import Metrics

OnPool: TypeAlias = Callable[[Callable[[], SimilarityResult]], Awaitable[SimilarityResult]]

_SCORES = 3
"""Of an image and a text: cosine, logit, probability."""
_WAITED = 0.9
"""Of a request's time it waits for labels; the rest is its images'."""


class Similarity:
    """Scores of images and texts, and heat maps. most_values: of all heat maps. most_templates: of a kept set."""

    def __init__(
        self,
        *,
        models: Models,
        planner: Planner,
        admission: Admission,
        images: Images,
        texts: Texts,
        label_sets: LabelSets,
        metrics: Metrics,
        on_pool: OnPool,
        clock: Callable[[], float],
        most_values: int,
        most_templates: int,
    ) -> None:
        self._models = models
        self._planner = planner
        self._admission = admission
        self._images = images
        self._texts = texts
        self._label_sets = label_sets
        self._metrics = metrics
        self._on_pool = on_pool
        self._clock = clock
        self._most_values = most_values
        self._most_templates = most_templates

    def sizes(self, request: SimilarityRequest, spec: EncoderSpec) -> Sizes:
        """What the request will take. Raises InvalidOption, UnsupportedResolution."""
        images, texts = len(request.sources), len(self._compared(request))
        numbers = images * texts * (_SCORES + _values_of_map(request, spec))
        return Sizes(numbers, images * 3 * math.prod(spec.size(request.resolution)))

    async def of(self, request: SimilarityRequest, started: float, deadline: float) -> SimilarityResult:
        """One item an image. Raises as Engine.similarity."""
        if not request.sources:
            raise NoImages
        model = self._models.id_of(request.model)
        spec = self._models.specs[model]
        size = spec.size(request.resolution)
        outputs = spec.outputs(pooled=True, tokens=TokenKind.DENSE if request.heatmap else None)
        texts, templates = self._compared(request), tuple(request.templates)
        values = len(request.sources) * len(texts) * _values_of_map(request, spec)
        if values > self._most_values:
            raise HeatmapTooLarge(actual=values, limit=self._most_values)
        wanted: WantedTexts | KnownLabels
        if request.labels is not None and self._is_kept(templates):
            spec.require_text()
            wait_s = _WAITED * (deadline - self._clock())
            wanted = await self._label_sets.known(request.labels, templates, model=model, wait_s=wait_s)
        else:
            wanted = self._texts.wanted(texts, templates, spec)
        with (
            self._admission.admit(images=len(request.sources), texts=wanted.prompts),
            self._texts.hold(wanted.nbytes),
        ):
            shape = await self._planner.image_shape(model, size, outputs)
            text_shape = await self._planner.text_shape(model)
            async with self._models.using(model, shape, text_shape) as resident:
                encode = partial(
                    self._images.encode,
                    request.sources,
                    resident=resident,
                    shape=shape,
                    started=started,
                    deadline=deadline,
                )
                if isinstance(wanted, KnownLabels):
                    found = wanted.of(resident.spec, templates, truncate=request.truncate)
                    images = await encode()
                else:
                    tokenized = await self._texts.tokenize(wanted, resident=resident, truncate=request.truncate)
                    finding = asyncio.create_task(
                        self._texts.embed(tokenized, resident=resident, shape=text_shape, deadline=deadline)
                    )
                    try:
                        images = await encode()
                        found = await finding
                    finally:
                        await ended(finding)
                rule = resident.spec.require_text()  # a blueprint's has no logit scale
                finish = partial(similarities, images, texts, found, rule, model=model, has_heatmaps=request.heatmap)
                is_small = max(self.sizes(request, spec).numbers, images.values) <= INLINE_VALUES
                result = finish() if is_small else await self._on_pool(finish)
        self._metrics.answered(model, tokens=0, all_stages=images.stages)
        return result

    def _compared(self, request: SimilarityRequest) -> Sequence[str]:
        """The texts of the request, or the labels that it names. Raises InvalidOption."""
        return request.texts if request.labels is None else self._label_sets.labels(request.labels)

    def _is_kept(self, templates: Sequence[str]) -> bool:
        """Whether vectors of sets of labels are kept: for templates that have a name, which are few."""
        return templates in NAMED.values() and len(templates) <= self._most_templates


def _values_of_map(request: SimilarityRequest, spec: EncoderSpec) -> int:
    """Numbers in one heat map of the request; 0 if it wants none. Raises UnsupportedResolution."""
    if not request.heatmap:
        return 0
    rows, cols = spec.grid(spec.size(request.resolution))
    return rows * cols
