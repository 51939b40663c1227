"""The engine's questions and answers. Frozen values: no protocol, no bytes of an answer.

A request names a served encoder by its id, or none for the first. An image that cannot be used is an error at its place
in the answer; the other images are answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from encoders.contract.errors import ImageError, VisiontowerError
from encoders.contract.spec import EncoderSpec, Scoring
from encoders.contract.values import Floats, Grid, ImageSize, Outputs, TokenKind
from encoders.memory.plan import Row
from service.errors import InvalidOption, WidthNotOffered

Output: TypeAlias = Literal["tokens", "pooled", "both"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]
VectorDtype: TypeAlias = Literal["float32", "float16", "bfloat16", "int8", "uint8", "binary"]
"""The last three hold each vector in fewer bits: see postprocess.quantized."""
DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


Numbers: TypeAlias = NDArray[Any]
"""An array in any dtype that a caller may ask for."""


@dataclass(frozen=True)
class ImageUrl:
    """An image that is yet to be fetched."""

    url: str


Source: TypeAlias = bytes | Path | ImageUrl | ImageError
"""One image: its bytes, a file on this machine, a URL, or the error that stands for it already.

A protocol must never make a Path of a caller's words.
"""


@dataclass(frozen=True)
class EmbedRequest:
    """Images -> tokens, pooled vectors or both; texts -> vectors in the joint image-text space.

    layer: block (CNNs: stage) whose raw output to give as tokens, from 0, negatives from the end; None for the final
        tokens. project: tokens through the model's own projection. resolution: None for the native size.
    tiles: projected tokens of the views that the model cuts an image into, joined as its language model reads them.
    prefix: keep class and register tokens. normalize: vectors of length 1. dtype: of the arrays given.
    texts: answered beside the images; what is said of tokens does not concern them. truncate: cut texts that are longer
        than the context length; if False they are refused.
    is_set: the images share their forwards with nobody else, in order, and so do the texts, of which none is taken from
        the cache. So their numbers do not depend on other traffic.
    width: numbers that each vector must have; others are refused.
    timeout_s: seconds until DeadlineExceeded; None for the engine's setting.
    """

    sources: Sequence[Source] = ()
    texts: Sequence[str] = ()
    model: str | None = None
    output: Output = "tokens"
    layer: int | None = None
    project: bool = False
    resolution: ImageSize | None = None
    tiles: bool = False
    prefix: bool = False
    normalize: bool = False
    dtype: VectorDtype = "float32"
    truncate: bool = True
    is_set: bool = False
    width: int | None = None
    timeout_s: float | None = None

    def require_width(self, spec: EncoderSpec, asked: int) -> None:
        """Raises WidthNotOffered; OutputNotOffered without a text half; LayerNotFound and others as `outputs`."""
        widths: set[int | None] = set()
        if self.texts:
            spec.require_text()
            widths.add(spec.embed_dim)
        if self.sources and self.output != "tokens":
            widths.add(spec.pooled_size)
        if self.sources and self.output != "pooled":
            widths.add(spec.tokens_width(self.outputs(spec)))
        for width in widths - {asked}:
            raise WidthNotOffered(model=spec.id, asked=asked, width=width)

    def outputs(self, spec: EncoderSpec) -> Outputs:
        """What the forward must give. Raises LayerNotFound, OutputNotOffered or InvalidOption."""
        require_tokens(self.output, layer=self.layer, prefix=self.prefix, project=self.project)
        if self.tiles:
            spec.require_tiles()
            if not self.project or self.output == "pooled" or spec.size(self.resolution) != spec.image_size:
                raise InvalidOption(
                    "tiles", "Tiles give projected tokens of views of native size: ask for project=true."
                )
        kind = TokenKind.PROJECTED if self.project else TokenKind.HIDDEN
        tokens = None if self.output == "pooled" else kind
        return spec.outputs(pooled=self.output != "tokens", tokens=tokens, layer=self.layer)


@dataclass(frozen=True)
class SimilarityRequest:
    """Images against texts, as the model was trained to compare them.

    templates: each has {} where a text goes; a text's vector is the mean over its templates. heatmap: also the cosine
    of every patch with every text. truncate: as of EmbedRequest, of a text in any of its templates. labels: a set that
    the engine knows by this name, in place of texts; with templates that have a name it may have more prompts than a
    request.
    """

    sources: Sequence[Source]
    texts: Sequence[str] = ()
    templates: Sequence[str] = ("{}",)
    labels: str | None = None
    heatmap: bool = False
    model: str | None = None
    resolution: ImageSize | None = None
    truncate: bool = True
    timeout_s: float | None = None


@dataclass(frozen=True)
class PlanRequest:
    """What forwards would take of the device. Nothing is run. Empty sizes and dtypes: the encoder's own."""

    model: str | None = None
    resolutions: Sequence[ImageSize] = ()
    batches: Sequence[int] = (1,)
    dtypes: Sequence[Dtype] = ()
    output: Output = "tokens"
    layer: int | None = None

    def outputs(self, spec: EncoderSpec) -> Outputs:
        """What the forwards would give. Raises LayerNotFound, OutputNotOffered or InvalidOption."""
        require_tokens(self.output, layer=self.layer)
        tokens = TokenKind.HIDDEN if self.output != "pooled" else None
        return spec.outputs(pooled=self.output != "tokens", tokens=tokens, layer=self.layer)


def require_tokens(output: Output, **options: int | bool | None) -> None:
    """Raises InvalidOption for an option about tokens where none are asked for."""
    if output != "pooled":
        return
    for name, value in options.items():
        if value is not None and value is not False:
            raise InvalidOption(
                name,
                f"'{name}' is {value!r}: it is about tokens, which output=pooled does not give: "
                "ask for output=tokens or both.",
            )


class Sizes(NamedTuple):
    """What a request takes: the numbers of its answer, and the bytes of its images' pixels, uint8 [3, H, W] each."""

    numbers: int
    pixel_bytes: int


@dataclass(frozen=True)
class Timing:
    """Seconds by stage; of several images the slowest, stage by stage. total: since the engine got the request.

    queue: for the device, or for the row of an equal image that another request had asked for.
    """

    fetch: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0
    queue: float = 0.0
    forward: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class CacheUse:
    """How many of a request's images had a kept row, and how many had not. age_s: of the oldest such row."""

    hits: int
    misses: int
    age_s: float


@dataclass(frozen=True)
class Embedding:
    """The arrays of one image, C-contiguous, in the dtype asked for. They may be read-only.

    tokens: [prefix_tokens + rows * cols, width], prefix first, then the patches row-major over `grid`. pooled: [width].
    None if not asked for. grid: of the tokens; of the final feature map if there are none.
    """

    grid: Grid
    prefix_tokens: int
    tokens: Numbers | None
    pooled: Numbers | None


@dataclass(frozen=True)
class EmbedResult:
    """One item an image and one row of `texts` a text, in the order of the request.

    tokens: that the images are answered with, or were pooled from. values: numbers that the answer holds, at most.
    texts: [texts, width] in the dtype asked for. truncated: indices of the texts that were cut.
    text_tokens: that the texts were embedded from. cached: None if no row was looked for in the result cache.
    """

    model: str
    items: Sequence[Embedding | VisiontowerError]
    timing: Timing
    tokens: int
    values: int
    texts: Numbers = field(default_factory=partial(np.empty, (0, 0), np.float32))
    truncated: Sequence[int] = ()
    text_tokens: int = 0
    cached: CacheUse | None = None


@dataclass(frozen=True)
class Scores:
    """One image against all texts: float32 [texts]; heatmap: float32 [texts, rows, cols] if asked for."""

    cosine: Floats
    logits: Floats
    probabilities: Floats
    grid: Grid
    heatmap: Floats | None

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return 3 * self.cosine.size + (0 if self.heatmap is None else self.heatmap.size)


@dataclass(frozen=True)
class SimilarityResult:
    """One item an image, in the order of the request. values: how many numbers the items hold.

    texts: that the images were compared with. truncated: indices of those that were cut. cached: as of EmbedResult.
    """

    model: str
    texts: Sequence[str]
    items: Sequence[Scores | VisiontowerError]
    truncated: Sequence[int]
    scoring: Scoring
    timing: Timing
    values: int
    has_heatmaps: bool = False
    cached: CacheUse | None = None


@dataclass(frozen=True)
class PlannedRow:
    """A line of a plan. max_resolution: the largest size of the native proportions that fits for its batch, if any."""

    spec: EncoderSpec
    row: Row
    max_resolution: ImageSize | None


@dataclass(frozen=True)
class PlanResult:
    """A row for each dtype, resolution and batch. budget_bytes: of the device, context included."""

    model: str
    device: str
    budget_bytes: int
    rows: Sequence[PlannedRow]
    values: int = 0
    """A plan is small."""
    cached: None = None


@dataclass(frozen=True)
class ModelsRequest:
    """What is served: this model, or all of them. among: leave out all others."""

    model: str | None = None
    among: Sequence[str] | None = None


@dataclass(frozen=True)
class ModelsResult:
    """The default first. troubles: of those that cannot serve now, by id: why not."""

    specs: Sequence[EncoderSpec]
    troubles: Mapping[str, str] = field(default_factory=dict)
    model: None = None
    values: int = 0
    cached: None = None


@dataclass(frozen=True)
class ReadyRequest:
    """Whether requests can be answered: those for this model, or any."""

    model: str | None = None


@dataclass(frozen=True)
class ReadyResult:
    """reason: why not; None if they can."""

    reason: str | None
    model: None = None
    values: int = 0
    cached: None = None


Request: TypeAlias = EmbedRequest | SimilarityRequest | PlanRequest | ModelsRequest | ReadyRequest
Result: TypeAlias = EmbedResult | SimilarityResult | PlanResult | ModelsResult | ReadyResult
