"""The part that an adapter in torch implements: a Tower wraps one library's vision model, a TextTower its text model.

TorchParts (parts.py) makes an Encoder or a Blueprint of them. A third party subclasses Tower and is done.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
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
        """int64 [N, context_length], or fewer columns if `lengths` says so -> [N, embed_dim], not normalised."""

    def lengths(self, ids: TokenIds) -> NDArray[np.int64]:
        """int64 [N]: the first tokens of each text that its vector depends on.

        All of them; override it where the model reads no padding.
        """
        return np.full(len(ids), ids.shape[1], dtype=np.int64)


def to_patches(feature_map: Tensor) -> Tensor:
    """A CNN's feature map [B, C, rows, cols] as patch tokens [B, rows * cols, C], row-major."""
    return feature_map.flatten(2).transpose(1, 2)
