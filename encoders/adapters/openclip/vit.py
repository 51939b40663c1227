"""open_clip's own VisionTransformer as a Tower, and its spec."""

from typing import Any

import torch
from torch import Tensor, nn

from encoders.adapters.openclip.positions import resample_positions
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions
from encoders.contract.values import Grid, ImageSize, Outputs, TokenKind
from encoders.runtime.block import is_known
from encoders.runtime.tower import Features, Tower, largest_size, to_patches


class VitTower(Tower):
    """open_clip's own VisionTransformer: one class token, learnt absolute positions."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        *before, last = self.visual.transformer.resblocks
        grid = self._grid(pixels)
        tokens: Tensor | None = None
        x = self._embed(pixels, grid)  # [B, 1 + rows * cols, C]
        for k, block in enumerate(before):
            x = block(x)
            if k == outputs.layer:
                tokens = self._tokens(x, outputs)
                if not outputs.pooled:
                    return Features(grid, 1, tokens)
        if outputs.tokens is TokenKind.DENSE:
            tokens = self._value_path(last, x)
            if not outputs.pooled:
                return Features(grid, tokens=tokens)
        x = last(x)
        if outputs.tokens and tokens is None:
            tokens = self._tokens(x, outputs)
        prefix_tokens = 0 if outputs.tokens in (None, TokenKind.DENSE) else 1
        return Features(grid, prefix_tokens, tokens, self._pool(x) if outputs.pooled else None)

    @property
    def class_block(self) -> nn.Module | None:
        """As Tower.class_block."""
        by_class = self.visual.attn_pool is None and self.visual.pool_type == "tok"
        return self.visual.transformer.resblocks[-1] if by_class else None

    def _grid(self, pixels: Tensor) -> Grid:
        patch = self.visual.patch_size
        return Grid(pixels.shape[2] // patch[0], pixels.shape[3] // patch[1])

    def _tokens(self, x: Tensor, outputs: Outputs) -> Tensor:
        """What is shown of a block's output [B, N, C]: a layer's raw, the last one's after the tower's norm.

        The final norm does not act on the tokens where it stands behind the pooling.
        """
        visual = self.visual
        normed = outputs.layer is None and visual.attn_pool is None and not visual.final_ln_after_pool
        shown: Tensor = x
        if outputs.tokens is TokenKind.PROJECTED:
            shown = visual.ln_post(x) @ visual.proj
        elif normed:
            shown = visual.ln_post(x)
        return shown

    def _embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """VisionTransformer._embeds, with the positions of this grid."""
        visual = self.visual
        patches = to_patches(visual.conv1(pixels))
        classes = visual.class_embedding.to(patches.dtype).expand(pixels.shape[0], 1, -1)
        positions = resample_positions(visual.positional_embedding, Grid(*visual.grid_size), grid)
        embedded: Tensor = visual.ln_pre(torch.cat([classes, patches], dim=1) + positions.to(patches.dtype))
        return embedded

    def _pool(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.visual._pool(x)[0] @ self.visual.proj
        return pooled

    def _value_path(self, block: Any, x: Tensor) -> Tensor:
        """Dense features [B, rows * cols, E]: the last block's values, attended by nobody, in the joint space.

        MaskCLIP (Zhou et al. 2022, arXiv:2112.01071): the attended sums of a CLIP's last block mix the whole image into
        each token, so projected final tokens do not localise; the values do. No residual and no MLP, as in ClearCLIP
        (Lan et al. 2024, arXiv:2407.12442).
        """
        dense: Tensor = self.visual.ln_post(block.alone(x[:, 1:])) @ self.visual.proj
        return dense


def vit_spec(visual: Any, preprocessing: Preprocessing, encoder_id: str) -> EncoderSpec:
    """The spec of the tower by itself: no text half."""
    patch = ImageSize(*visual.patch_size)
    embed_dim = int(visual.proj.shape[1])
    in_block = visual.attn_pool is None
    return EncoderSpec(
        id=encoder_id,
        family="vit",
        image_size=ImageSize(*visual.image_size),
        patch_size=patch,
        prefix_tokens=1,
        hidden_size=int(visual.conv1.out_channels),
        embed_dim=embed_dim,
        pooled_size=embed_dim,
        pooling={"tok": "class", "avg": "mean"}[visual.pool_type] if in_block else "attention",
        layers=len(visual.transformer.resblocks),
        resolutions=Resolutions(multiple=patch, minimum=patch, maximum=largest_size(patch)),
        preprocessing=preprocessing,
        projected_size=embed_dim if in_block else None,
        dense=in_block and is_known(visual.transformer.resblocks[-1]),
    )
