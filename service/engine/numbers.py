"""How many numbers an answer will hold, known before anything is run: what its memory is asked for by."""

from collections.abc import Hashable

from service.engine.label_sets import LabelSets
from service.engine.models import Models
from service.engine.values import EmbedRequest, Request, SimilarityRequest
from service.memory.planner import Planner

SCORES = 3
"""Of an image and a text: cosine, logit, probability."""
_QUESTIONS = 1000
"""Whose count is kept."""


class Numbers:
    """Counts the numbers of answers. Nothing is run; a CNN's stage is planned."""

    def __init__(self, *, models: Models, planner: Planner, label_sets: LabelSets) -> None:
        self._models = models
        self._planner = planner
        self._label_sets = label_sets
        self._of_image: dict[Hashable, int] = {}  # by the part of a request that decides

    async def of(self, request: Request) -> int:
        """If no image fails. Raises what the request itself would raise for an option that cannot be."""
        match request:
            case EmbedRequest():
                of_images = len(request.sources) * await self._image(request) if request.sources else 0
                if not request.texts:
                    return of_images
                spec = self._models.specs[self._models.id_of(request.model)]
                return of_images + len(request.texts) * (spec.embed_dim or 0)
            case SimilarityRequest():
                spec = self._models.specs[self._models.id_of(request.model)]
                rows, cols = spec.grid(spec.size(request.resolution)) if request.heatmap else (0, 0)
                texts = self._label_sets.compared(request)
                return len(request.sources) * len(texts) * (SCORES + rows * cols)
            case _:
                return 0

    async def _image(self, request: EmbedRequest) -> int:
        asked = (request.model, request.resolution, request.output, request.layer, request.project, request.tiles)
        known = self._of_image.get(asked)
        if known is None:
            spec = self._models.specs[self._models.id_of(request.model)]
            size, outputs = spec.size(request.resolution), request.outputs(spec)
            width, tokens = spec.tokens_width(outputs), spec.token_count(size, outputs)
            tokens = spec.most_joined if request.tiles else tokens
            if width is None or tokens is not None:
                known = (width or 0) * (tokens or 0) + spec.pooled_size * outputs.pooled
            else:  # only a forward, or its plan, knows the grid of a CNN's stage
                shape = await self._planner.image_shape(spec.id, size, outputs)
                known = shape.cost.output_bytes // (4 if spec.dtype == "float32" else 2)
            if len(self._of_image) > _QUESTIONS:
                self._of_image.clear()
            self._of_image[asked] = known
        return known
