"""The part that an adapter in torch implements: a Tower wraps one library's vision model, a TextTower its text model.

TorchParts (parts.py) makes an Encoder or a Blueprint of them. A third party subclasses Tower and is done.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from encoders.contract.values import Grid, ImageSize, Outputs, TokenIds, Tokenized, TokenKind
from encoders.runtime.tiles import Tiles

MAX_GRID = 64
"""Side of the largest patch grid offered: 4096 tokens an image."""


MAX_SIDE = 2048
"""Largest side in pixels offered, whatever the patch size."""


def largest_size(patch_size: ImageSize) -> ImageSize:
    """The largest input offered for a patch size (or CNN stride): MAX_GRID patches a side, MAX_SIDE pixels at most."""
    return ImageSize(*(min(MAX_GRID * patch, MAX_SIDE // patch * patch) for patch in patch_size))


FINAL = Outputs(tokens=TokenKind.HIDDEN, pooled=True)
"""Final tokens and pooled vectors."""

_COLUMNS = 2
"""Texts are this many tokens long, or a multiple: a device then sees fewer shapes."""


@dataclass(frozen=True)
class Features:
    """What a tower gives, on its device; the fields are those of Encoded."""

    grid: Grid
    prefix_tokens: int = 0
    tokens: Tensor | None = None
    pooled: Tensor | None = None


class Tower(nn.Module, ABC):
    """A vision tower that can answer Outputs."""

    @abstractmethod
    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """Features of a batch.

        pixels: [B, 3, H, W], normalised as the spec's preprocessing says, in the tower's dtype and on its device; the
        size is one the spec's resolutions allow. Only what `outputs` asks for is computed.
        """

    @property
    def class_block(self) -> nn.Module | None:
        """The last block, if pooled vectors depend on its prefix tokens and on no others (block.py's only_first)."""
        return None

    @property
    def tiles(self) -> Tiles | None:
        """How images are cut into views, where the model reads them so."""
        return None


class TextTower(nn.Module, ABC):
    """A text tower with its tokenizer."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """As Encoder.tokenize; called from any thread."""

    @abstractmethod
    def forward(self, ids: Tensor) -> Tensor:
        """int64 [N, context_length], or fewer columns as `trim` leaves them -> [N, embed_dim], not normalised."""

    def trim(self, ids: TokenIds) -> TokenIds:
        """The ids without columns that no vector depends on. Override it where the model reads no padding."""
        return ids


def without_padding(ids: TokenIds, padding: int) -> TokenIds:
    """The ids up to the longest text and one column on, in steps of _COLUMNS.

    padding: the id; it may be that of the end of a text too, so the first is kept.
    """
    used = np.flatnonzero((ids != padding).any(axis=0))
    columns = int(used[-1]) + 2 if len(used) else 1
    return ids[:, : -(-columns // _COLUMNS) * _COLUMNS]


def to_patches(feature_map: Tensor) -> Tensor:
    """A CNN's feature map [B, C, rows, cols] as patch tokens [B, rows * cols, C], row-major."""
    return feature_map.flatten(2).transpose(1, 2)
