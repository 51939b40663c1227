"""The spec of an encoder: its sizes, its outputs, and everything else that a caller may ask for."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from encoders.contract.errors import LayerNotFound, OutputNotOffered, UnsupportedResolution
from encoders.contract.values import Encoded, Grid, ImageSize, Outputs, TokenKind


@dataclass(frozen=True)
class Preprocessing:
    """How an encoder was trained to see an image; preprocess.py applies it.

    mean, std: per channel, of values in 0..1.
    interpolation: PIL's filter of that name, antialiased.
    resize: `shortest` side to the target then centre crop, so that the target is covered; `edge`: the same, but the
        shortest side becomes that of the target whatever its proportions, and what it does not cover is `fill`;
        `longest` side then pad with `fill`; `squash` both; `pad` with `fill` to the target's proportions, then squash.
    crop_pct: the target is this share of what `shortest`, `edge` and `squash` resize to (timm's term); it is cropped
        from the centre. Over 1.0 the target is larger, and what lies around is `fill`.
    crop_offset: how a centre crop halves an odd margin: torchvision rounds half to even, transformers floors.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    resize: Literal["shortest", "edge", "longest", "squash", "pad"] = "shortest"
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
    prefix_tokens: class and register tokens ahead of the patch tokens. A transformer has them in every layer, a CNN at
        most in the final tokens.
    hidden_size: width of the final tokens. embed_dim: width of the joint image-text space, None without one.
    pooled_size: width of `pooled`. pooling: class, mean, attention, ... how it is made.
    layers: blocks of a transformer, stages of a CNN.
    trained_on: the pictures it knows where they are not photographs: drawings, x-rays. None for photographs.
    grid_offset: the grid's side is (side + grid_offset) // patch: 0 rounds down, patch - 1 rounds up; between the two
        for towers that do both along the way (CLIP's ResNets: 1).
    layer_sizes: width of each stage's tokens in a CNN, whose stages have grids of their own too. Empty in a
        transformer: there every layer has hidden_size and the grid of the final tokens.
    projected_size: width of projected tokens; None if the encoder offers none.
    projection_drops: tokens in front that the projection leaves out: LLaVA's class token; where there are no prefix
        tokens, patches.
    projection_merges: patches a side that become one projected token.
    projected_queries: the number of projected tokens where it does not depend on the grid (BLIP-2's Q-Former).
    most_views: views of native size that one image is cut into at most, the whole image among them; 0 if the model
        reads whole images only. most_joined: tokens that are left of them at most.
    language_model: transformers' type of the vision-language model whose language model reads the projected tokens;
        `pixtral` for LLaVA's with a Pixtral tower. None if no language model reads them.
    dense: whether the encoder offers dense features. Their width is embed_dim.
    scoring, context_length: of the text half; None without one.
    dtype: float32, float16, bfloat16, int8: what it computes in. int8_cosine: least cosine to float32 of the pooled
        vectors and of the tokens of pictures that int8 was tried with; None of other dtypes.
    device: cpu, cuda, cuda:1, ...; meta in a blueprint.
    runtime: torch, or openvino where that runs final tokens and pooled vectors of native size.
    parameters, weights_bytes: of all parts loaded. revision: fingerprint of the weights; empty in a blueprint.
    architecture: fingerprint of what is computed with them, and with which settings; empty in a blueprint.
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
    trained_on: str | None = None
    grid_offset: int = 0
    layer_sizes: tuple[int, ...] = ()
    projected_size: int | None = None
    projection_drops: int = 0
    projection_merges: int = 1
    projected_queries: int | None = None
    most_views: int = 0
    most_joined: int = 0
    language_model: str | None = None
    dense: bool = False
    scoring: Scoring | None = None
    context_length: int | None = None
    dtype: str = "float32"
    int8_cosine: float | None = None
    device: str = "cpu"
    runtime: str = "torch"
    parameters: int = 0
    weights_bytes: int = 0
    revision: str = ""
    architecture: str = ""

    @property
    def has_text(self) -> bool:
        """Whether it can embed texts and so answer similarity."""
        return self.scoring is not None

    @property
    def projects(self) -> bool:
        """Whether it offers projected tokens."""
        return self.projected_size is not None

    def grid(self, size: ImageSize | None = None) -> Grid:
        """The patch grid of the final layer at `size` (native if None)."""
        size = size or self.image_size
        return Grid(*((side + self.grid_offset) // patch for side, patch in zip(size, self.patch_size, strict=True)))

    def projected_grid(self, patches: Grid) -> Grid:
        """The grid of the projected tokens of a grid of patches: one row where rows and columns are lost."""
        if self.projected_queries is not None:
            return Grid(1, self.projected_queries)
        rows, cols = (side // self.projection_merges for side in patches)
        lost = max(self.projection_drops - self.prefix_tokens, 0)
        return Grid(1, rows * cols - lost) if lost else Grid(rows, cols)

    def tokens_grid(self, size: ImageSize, outputs: Outputs) -> Grid:
        """The grid of the tokens that `outputs` asks for at this size; a CNN's stage has its own, which this is not."""
        grid = self.grid(size)
        return self.projected_grid(grid) if outputs.tokens is TokenKind.PROJECTED else grid

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

    def require_tiles(self) -> None:
        """Raises OutputNotOffered if the model reads whole images only."""
        if not self.most_views:
            raise OutputNotOffered(encoder=self.id, output="tiles", reason="it does not cut images")

    def tokens_width(self, outputs: Outputs) -> int | None:
        """The width of the tokens that `outputs` asks for; None if it asks for none.

        Hidden tokens are hidden_size wide, those of a CNN's stage as layer_sizes says. Projected tokens are
        projected_size wide, dense features embed_dim. `pooled` is pooled_size wide, whatever else is asked for.
        """
        match outputs.tokens:
            case None:
                return None
            case TokenKind.PROJECTED:
                return self.projected_size
            case TokenKind.DENSE:
                return self.embed_dim
            case TokenKind.HIDDEN:
                if outputs.layer is None or not self.layer_sizes:
                    return self.hidden_size
                return self.layer_sizes[outputs.layer]

    def tokens_prefix(self, outputs: Outputs) -> int:
        """The number of prefix tokens ahead of the patch tokens that `outputs` asks for.

        Final tokens and the layers of a transformer have all prefix tokens. Dense features and a CNN's stages have
        none. Projected tokens have all but projection_drops.
        """
        if outputs.tokens in (None, TokenKind.DENSE) or self._is_stage(outputs):
            return 0
        if outputs.tokens is not TokenKind.PROJECTED:
            return self.prefix_tokens
        return 0 if self.projected_queries is not None else max(self.prefix_tokens - self.projection_drops, 0)

    def token_count(self, size: ImageSize, outputs: Outputs) -> int | None:
        """The number of tokens an image of this size gives, prefix tokens included.

        None if `outputs` asks for no tokens, and for a CNN's stage: only its forward knows its grid.
        """
        if outputs.tokens is None or self._is_stage(outputs):
            return None
        rows, cols = self.tokens_grid(size, outputs)
        return self.tokens_prefix(outputs) + rows * cols

    def mismatch(self, encoded: object, *, images: int, size: ImageSize, outputs: Outputs) -> str | None:
        """How `encoded` differs from the answer to `images` images of this size; None if it is right.

        It is an Encoded. Both outputs are there or not as `outputs` asks, every array has one row an image, of floats,
        every width is as the spec says, and there are as many tokens as prefix tokens and places of the grid. The grid
        is the spec's, except for a CNN's stage.
        """
        if not isinstance(encoded, Encoded):
            return f"{type(encoded).__name__}, must be Encoded"
        stage = self._is_stage(outputs)
        grid = encoded.grid if stage else self.tokens_grid(size, outputs)
        count, width = self.tokens_prefix(outputs) + grid.rows * grid.cols, self.tokens_width(outputs)
        for name, found, expected in (
            ("grid", encoded.grid, grid),
            ("prefix tokens", encoded.prefix_tokens, self.tokens_prefix(outputs)),
            ("tokens", _shape(encoded.tokens), (images, count, width) if outputs.tokens else None),
            ("pooled", _shape(encoded.pooled), (images, self.pooled_size) if outputs.pooled else None),
        ):
            if found != expected:
                return f"{name}: {_shown(found)}, must be {_shown(expected)}"
        return None

    def mismatch_of_texts(self, vectors: object, *, texts: int) -> str | None:
        """How `vectors` differ from those of `texts` texts; None if they are right."""
        found, expected = _shape(vectors), (texts, self.embed_dim)
        return None if found == expected else f"vectors of texts: {_shown(found)}, must be {_shown(expected)}"

    def _is_stage(self, outputs: Outputs) -> bool:
        """Whether the tokens asked for are those of a CNN's stage."""
        return outputs.layer is not None and bool(self.layer_sizes)


_FLOATS = ("float32", "float16", "bfloat16")
"""Names of the dtypes that an encoder may give."""


def _shape(values: object) -> tuple[int, ...] | str | None:
    """The shape of an array of floats; of anything else, its name."""
    if values is None:
        return None
    if not isinstance(values, np.ndarray):
        return f"of type {type(values).__name__}"
    return values.shape if values.dtype.name in _FLOATS else f"{values.dtype}, none of {', '.join(_FLOATS)}"


def _shown(fact: int | str | tuple[int | None, ...] | None) -> str:
    return "none" if fact is None else "x".join(map(str, fact)) if isinstance(fact, tuple) else str(fact)
