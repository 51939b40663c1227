"""The values that cross between images, encoders and whoever calls them. Imports no torch.

Sizes are (height, width) and grids (rows, cols), in this order everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoders.contract.errors import LayerNotFound, OutputNotOffered, UnsupportedResolution
from encoders.memory.prediction import Cost

Pixels: TypeAlias = NDArray[np.uint8]
"""Preprocessed image, uint8 [H, W, 3] (a batch: [B, H, W, 3]); mean and std are applied on the device."""

Floats: TypeAlias = NDArray[Any]
"""float32, float16 or ml_dtypes.bfloat16: what the encoder computes in."""

TokenIds: TypeAlias = NDArray[np.int64]
"""Tokenised texts, int64 [N, context_length]."""


class ImageSize(NamedTuple):
    """(height, width) in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Grid(NamedTuple):
    """(rows, cols) of the patch grid; patch tokens are row-major over it."""

    rows: int
    cols: int


class TokenKind(StrEnum):
    """What the tokens of a forward are."""

    HIDDEN = "hidden"
    """The tower's own: after its final norm, or the raw output of a layer; width hidden_size."""
    PROJECTED = "projected"
    """Hidden tokens through the model's own projection or multimodal projector."""
    DENSE = "dense"
    """Patch features in the joint space that localise; only patch tokens, width embed_dim."""


@dataclass(frozen=True)
class Outputs:
    """What one forward must give; requests of equal outputs and size can share a batch.

    layer: None for the final tokens, else the block or stage, 0-based; EncoderSpec.outputs resolves negatives.
    """

    pooled: bool = False
    tokens: TokenKind | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        if not self.pooled and self.tokens is None:
            raise ValueError("a forward must give tokens, pooled or both")
        if self.layer is not None and (self.tokens in (None, TokenKind.DENSE) or self.layer < 0):
            raise ValueError(f"layer {self.layer} does not go with tokens={self.tokens}")


@dataclass(frozen=True)
class Encoded:
    """The rows of one forward.

    tokens: [B, prefix_tokens + rows * cols, width], prefix first, then row-major patches; None if not asked for.
    pooled: [B, width] in the joint space where the model has one; None if not asked for.
    grid: of the tokens returned (of the final feature map if there are none).
    """

    grid: Grid
    prefix_tokens: int = 0
    tokens: Floats | None = None
    pooled: Floats | None = None

    def __len__(self) -> int:
        rows = self.pooled if self.tokens is None else self.tokens
        return 0 if rows is None else len(rows)

    def row(self, index: int) -> "Encoded":
        """The index-th image's part, without the batch axis; views, no copies."""
        return replace(
            self,
            tokens=None if self.tokens is None else self.tokens[index],
            pooled=None if self.pooled is None else self.pooled[index],
        )


@dataclass(frozen=True)
class Preprocessing:
    """How an encoder was trained to see an image; preprocess.py applies it.

    mean, std: per channel, of values in 0..1.
    interpolation: PIL's filter of that name, antialiased.
    resize: `shortest` side to the target then centre crop; `longest` side then pad with `fill`; `squash` both; `pad`
        with `fill` to the target's proportions, then squash.
    crop_pct: the target is this share of what `shortest` resizes to (timm's term); 1.0 crops only the long side.
    crop_offset: how a centre crop halves an odd margin: torchvision rounds half to even, transformers floors.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    resize: Literal["shortest", "longest", "squash", "pad"] = "shortest"
    crop_pct: float = 1.0
    fill: int | tuple[int, int, int] = 0
    crop_offset: Literal["round", "floor"] = "round"


@dataclass(frozen=True)
class Resolutions:
    """The sizes an encoder can run at: each side a multiple of `multiple`, from `minimum` to `maximum` pixels.

    only: set for towers that run at one size alone.
    """

    multiple: ImageSize
    minimum: ImageSize
    maximum: ImageSize
    only: ImageSize | None = None

    def problem(self, size: ImageSize) -> str | None:
        """Why `size` cannot be run, or None if it can."""
        if self.only is not None:
            return None if size == self.only else "its tower has one fixed size"
        for name, side, multiple, low, high in zip(
            ImageSize._fields, size, self.multiple, self.minimum, self.maximum, strict=True
        ):
            if side < low:
                return f"the {name} must be at least {low}"
            if side > high:
                return f"the {name} must be at most {high}"
            if side % multiple:
                return f"the {name} must be a multiple of {multiple}"
        return None

    def nearest(self, size: ImageSize) -> list[ImageSize]:
        """The closest sizes that can be run, at most one below and one above, nearer side by side."""
        if self.only is not None:
            return [self.only]
        below = [
            _clamp(side // m * m, low, high, m)
            for side, m, low, high in zip(size, self.multiple, self.minimum, self.maximum, strict=True)
        ]
        above = [
            _clamp(-(-side // m) * m, low, high, m)
            for side, m, low, high in zip(size, self.multiple, self.minimum, self.maximum, strict=True)
        ]
        return sorted({ImageSize(*below), ImageSize(*above)})


def _clamp(side: int, low: int, high: int, multiple: int) -> int:
    lowest = -(-low // multiple) * multiple
    return max(lowest, min(side, high // multiple * multiple))


@dataclass(frozen=True)
class Scoring:
    """How the model turns cosine similarity into a probability: `activation(scale * cosine + bias)`.

    softmax runs over the texts (CLIP); sigmoid judges each pair alone (SigLIP).
    """

    activation: Literal["softmax", "sigmoid"]
    logit_scale: float
    logit_bias: float = 0.0


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is. Everything a caller may ask is declared here, nothing is probed.

    id: as asked for, SCHEME:NAME[@WEIGHTS].
    family: vit, resnet, convnext, ... the architecture's kind.
    image_size: native input. patch_size: pixels a token covers (a CNN's stride).
    prefix_tokens: class and register tokens ahead of the patch tokens in the final layer.
    hidden_size: width of the final tokens. embed_dim: width of the joint image-text space, None without one.
    pooled_size: width of `pooled`. pooling: class, mean, attention, ... how it is made.
    layers: blocks of a transformer, stages of a CNN.
    grid_offset: the grid's side is (side + grid_offset) // patch: 0 rounds down, patch - 1 rounds up; between the two
        for towers that do both along the way (CLIP's ResNets: 1).
    layer_sizes: width of each layer's tokens where a CNN's stages differ; empty if all are of hidden_size.
    projects, dense: whether the encoder offers projected tokens and dense features.
    scoring, context_length: of the text half; None without one.
    dtype: float32, float16, bfloat16: what it computes in. device: cpu, cuda, cuda:1, ... runtime: torch, or openvino
        where that runs final tokens and pooled vectors of native size.
    parameters, weights_bytes: of all parts loaded. revision: fingerprint of the weights; empty in a blueprint.
    """

    id: str
    family: str
    image_size: ImageSize
    patch_size: ImageSize
    prefix_tokens: int
    hidden_size: int
    embed_dim: int | None
    pooled_size: int
    pooling: str
    layers: int
    resolutions: Resolutions
    preprocessing: Preprocessing
    grid_offset: int = 0
    layer_sizes: tuple[int, ...] = ()
    projects: bool = False
    dense: bool = False
    scoring: Scoring | None = None
    context_length: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    runtime: str = "torch"
    parameters: int = 0
    weights_bytes: int = 0
    revision: str = ""

    @property
    def has_text(self) -> bool:
        """Whether it can embed texts and so answer similarity."""
        return self.scoring is not None

    def grid(self, size: ImageSize | None = None) -> Grid:
        """The patch grid of the final layer at `size` (native if None)."""
        size = size or self.image_size
        return Grid(*((side + self.grid_offset) // patch for side, patch in zip(size, self.patch_size, strict=True)))

    def size(self, resolution: ImageSize | None = None) -> ImageSize:
        """The input size for a requested resolution (None: native).

        Raises UnsupportedResolution, which names the nearest possible sizes.
        """
        if resolution is None or resolution == self.image_size:
            return self.image_size
        problem = self.resolutions.problem(resolution)
        if problem is not None:
            raise UnsupportedResolution(
                encoder=self.id, size=resolution, reason=problem, nearest=self.resolutions.nearest(resolution)
            )
        return resolution

    def outputs(self, *, pooled: bool = False, tokens: TokenKind | None = None, layer: int | None = None) -> Outputs:
        """Checked outputs of a forward; a negative layer counts from the end.

        Raises LayerNotFound or OutputNotOffered.
        """
        if tokens is TokenKind.PROJECTED and not self.projects:
            raise OutputNotOffered(encoder=self.id, output="projected tokens", reason="it has no projection")
        if tokens is TokenKind.DENSE and not self.dense:
            raise OutputNotOffered(
                encoder=self.id, output="heat maps", reason="it has no patch features in the joint space"
            )
        if layer is not None:
            if not -self.layers <= layer < self.layers:
                raise LayerNotFound(encoder=self.id, layer=layer, layers=self.layers)
            layer %= self.layers
            if tokens is TokenKind.PROJECTED and self.layer_sizes and self.layer_sizes[layer] != self.hidden_size:
                raise OutputNotOffered(
                    encoder=self.id,
                    output=f"the projection of layer {layer}",
                    reason=f"it is {self.layer_sizes[layer]} wide and the projection takes {self.hidden_size}",
                )
        return Outputs(pooled=pooled, tokens=tokens, layer=layer if tokens else None)

    def require_text(self) -> Scoring:
        """The scoring rule. Raises OutputNotOffered if there is no text half."""
        if self.scoring is None:
            raise OutputNotOffered(encoder=self.id, output="text similarity", reason="it has no text tower")
        return self.scoring


class Encoder(Protocol):
    """What the service sees of a model. On a CPU it may encode on several threads at once; on a GPU, on one."""

    @property
    def spec(self) -> EncoderSpec:
        """What this encoder is."""

    def preprocess(self, image: Image.Image, size: ImageSize, *, exact: bool = True) -> Pixels:
        """RGB image -> pixels, uint8 [H, W, 3] at `size`. Thread-safe, CPU only.

        exact: equal to the pixel to the model's own transforms; else values may be off by 2 of 255 for speed.
        """

    def tokenize(self, texts: Sequence[str]) -> TokenIds:
        """Texts -> int64 [N, context_length], truncated to it. Thread-safe, CPU only. Raises OutputNotOffered."""

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        """uint8 [B, H, W, 3] -> rows in the order given, on the host. Raises EncoderFailed."""

    def begin(self, pixels: Pixels, outputs: Outputs) -> Encoded | Callable[[], Encoded]:
        """Start `encode`: the rows if they are there already, else what waits for them, to be called once.

        Until then the device is at work, and another may be begun behind; they end in the order they were begun. All
        that `cost` says is taken, and given back for the next, before this returns. Raises EncoderFailed, as does what
        waits.
        """

    def encode_text(self, ids: TokenIds) -> Floats:
        """int64 [N, context_length] -> [N, embed_dim], not normalised, on the host. Raises EncoderFailed."""

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        """What `encode` takes on `device` (cpu or cuda) for such images; of a blueprint. Raises EncoderFailed."""

    def text_cost(self, *, device: str) -> Cost:
        """What `encode_text` takes on `device`; of a blueprint. Raises OutputNotOffered or EncoderFailed."""


@dataclass(frozen=True)
class Placement:
    """Where an encoder runs: `device` as torch names it; `dtype` float32, float16 or bfloat16. Never auto.

    runtime: torch or openvino; that runs on CPUs what it can take, and leaves the rest to torch. lanes: forwards that
    will run side by side, each on its part of a CPU's cores.

    The device `meta` holds no bytes: an encoder placed there is its own blueprint. It has no weights (none are read or
    downloaded) and cannot encode, but knows its spec and says what its forwards cost.
    """

    device: str = "cpu"
    dtype: str = "float32"
    runtime: str = "torch"
    lanes: int = 1

    @property
    def is_blueprint(self) -> bool:
        """Whether only the shape of the encoder is asked for."""
        return self.device == BLUEPRINT


BLUEPRINT = "meta"
