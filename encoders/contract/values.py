"""The values that cross between images, encoders and whoever calls them. Imports no torch.

Sizes are (height, width) and grids (rows, cols), in this order everywhere.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
"""Preprocessed image, uint8 [H, W, 3] (a batch: [B, H, W, 3]); mean and std are applied on the device."""


Floats: TypeAlias = NDArray[Any]
"""float32, float16 or ml_dtypes.bfloat16: what the encoder computes in."""


TokenIds: TypeAlias = NDArray[np.int64]
"""Tokenised texts, int64 [N, context_length]."""


@dataclass(frozen=True)
class Tokenized:
    """Texts as a text tower reads them.

    ids: int64 [N, context_length], longer texts cut to it. lengths: int64 [N], the tokens of each whole text with the
    special ones that the tower needs, before the cut.
    """

    ids: TokenIds
    lengths: NDArray[np.int64]

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Which texts were cut; bool [N]."""
        return np.greater(self.lengths, self.ids.shape[1])


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
