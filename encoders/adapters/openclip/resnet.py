"""CLIP's ModifiedResNet as a Tower, and its spec."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.adapters.openclip.positions import resample_positions
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions
from encoders.contract.values import Grid, ImageSize, Outputs, TokenKind
from encoders.runtime.tower import Features, Tower, largest_size, to_patches


class ResNetTower(Tower):
    """CLIP's ModifiedResNet: tokens are the last feature map before the attention pool."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        visual = self.visual
        kept: Tensor | None = None
        x = visual.stem(pixels)
        for k, stage in enumerate((visual.layer1, visual.layer2, visual.layer3, visual.layer4)):
            x = stage(x)  # [B, C, rows, cols]
            if k == outputs.layer:
                kept = x
                if not outputs.pooled:
                    break
        shown = x if kept is None else kept
        tokens = to_patches(shown) if outputs.tokens else None
        if tokens is not None and outputs.tokens in (TokenKind.PROJECTED, TokenKind.DENSE):
            # What the attention pool would give if it attended to this place alone.
            tokens = visual.attnpool.c_proj(visual.attnpool.v_proj(tokens))
        return Features(Grid(*shown.shape[2:]), tokens=tokens, pooled=self._pool(x) if outputs.pooled else None)

    def _pool(self, x: Tensor) -> Tensor:
        """As visual.attnpool, for its first token alone: all that is read of the rest are keys and values."""
        pool = self.visual.attnpool
        side = math.isqrt(len(pool.positional_embedding) - 1)
        positions = resample_positions(pool.positional_embedding, Grid(side, side), Grid(*x.shape[2:]))
        patches = to_patches(x)
        tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1) + positions.to(x.dtype)
        query, key, value = (
            rows.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
            for rows in (pool.q_proj(tokens[:, 0]).unsqueeze(1), pool.k_proj(tokens), pool.v_proj(tokens))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, heads, 1, width of a head]
        pooled: Tensor = pool.c_proj(mixed.flatten(1))
        return pooled


def resnet_spec(visual: Any, preprocessing: Preprocessing, encoder_id: str) -> EncoderSpec:
    """The spec of the tower by itself: no text half."""
    stride = ImageSize(32, 32)
    width = int(visual.conv3.out_channels)
    sizes = tuple(width * 4 * 2**k for k in range(4))
    return EncoderSpec(
        id=encoder_id,
        family="resnet",
        image_size=ImageSize(visual.image_size, visual.image_size),
        patch_size=stride,
        prefix_tokens=0,
        hidden_size=sizes[-1],
        embed_dim=visual.output_dim,
        pooled_size=visual.output_dim,
        pooling="attention",
        layers=4,
        layer_sizes=sizes,
        grid_offset=1,  # the first convolution rounds up, the four halvings after it down
        resolutions=Resolutions(multiple=ImageSize(1, 1), minimum=stride, maximum=largest_size(stride)),
        preprocessing=preprocessing,
        projected_size=visual.output_dim,
        dense=True,
    )
