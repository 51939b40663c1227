"""A transformers vision transformer as a Tower, run part by part. Knows modules; knows no ids and no files.

A tower calls the library's own embeddings, blocks and heads, in the order of the library's own forward. That forward
cannot stop early, keep one layer without keeping all, or normalise CLIP's tokens; a tower can.

A depth counts blocks run, as transformers' hidden_states do: 0 is what the first block reads, k + 1 our layer k.
"""

from abc import abstractmethod
from collections.abc import Collection
from itertools import islice
from typing import Any

from torch import Tensor, nn

from encoders.contract.values import Grid, ImageSize, Outputs, TokenKind
from encoders.runtime.tower import Features, Tower


class VitTower(Tower):
    """A transformer over patches, whose final tokens are those of the last block after the final norm.

    native: the size whose positions need no interpolation. prefix_tokens: ahead of the patches in every layer.
    """

    def __init__(self, model: nn.Module, *, native: ImageSize, patch_size: ImageSize, prefix_tokens: int) -> None:
        super().__init__()
        self.model: Any = model
        self.native = native
        self.patch_size = patch_size
        self.prefix_tokens = prefix_tokens

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks, in order."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The input of the first block, [B, prefix + rows * cols, C], and what every block takes besides."""

    @abstractmethod
    def norm(self, tokens: Tensor) -> Tensor:
        """The final norm."""

    @abstractmethod
    def pool(self, final: Tensor) -> Tensor:
        """Final tokens -> the model's pooled vector [B, E]."""

    @property
    def pooling(self) -> str:
        """The pooling's name, as EncoderSpec.pooling."""
        return "class"

    @property
    def class_block(self) -> nn.Module | None:
        """As Tower.class_block."""
        return self.blocks[-1] if self.pooling == "class" else None

    def project(self, final: Tensor) -> Tensor:
        """Normed tokens -> the joint space."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Of the last block's output."""
        return len(self.blocks)

    @property
    def dense_depth(self) -> int:
        """Of what `dense` reads."""
        return self.depth

    def dense(self, tokens: Tensor) -> Tensor:
        """Raw tokens at `dense_depth` -> dense features [B, rows * cols, E]."""
        raise NotImplementedError

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        grid, wanted = self.grid(pixels), self._depth_of(outputs)
        kept = self.run(pixels, ({self.depth} if outputs.pooled else set()) | ({wanted} if outputs.tokens else set()))
        pooled = self.pool(self.norm(kept[self.depth])) if outputs.pooled else None
        match outputs.tokens:
            case None:
                return Features(grid, pooled=pooled)
            case TokenKind.DENSE:
                return Features(grid, tokens=self.dense(kept[wanted]), pooled=pooled)
            case TokenKind.PROJECTED:
                tokens = self.project(self.norm(kept[wanted]))
            case TokenKind.HIDDEN:
                tokens = self.norm(kept[wanted]) if outputs.layer is None else kept[wanted]
        return Features(grid, self.prefix_tokens, tokens, pooled)

    def _depth_of(self, outputs: Outputs) -> int:
        if outputs.tokens is TokenKind.DENSE:
            return self.dense_depth
        return self.depth if outputs.layer is None else outputs.layer + 1

    def run(self, pixels: Tensor, depths: Collection[int]) -> dict[int, Tensor]:
        """Raw tokens [B, prefix + rows * cols, C] at each depth; no block behind the deepest runs."""
        x, context = self.embed(pixels)
        kept = {0: x} if 0 in depths else {}
        for depth, block in enumerate(islice(self.blocks, max(depths)), start=1):
            x = block(x, **context)
            if depth in depths:
                kept[depth] = x
        return kept

    def grid(self, pixels: Tensor) -> Grid:
        """The patch grid of a batch."""
        return Grid(pixels.shape[2] // self.patch_size.height, pixels.shape[3] // self.patch_size.width)

    def is_native(self, pixels: Tensor) -> bool:
        """Whether the positions fit as they are."""
        return tuple(pixels.shape[2:]) == self.native
