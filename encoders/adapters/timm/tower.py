"""A timm trunk as a Tower: backbones by themselves, and the towers that open_clip takes from timm.

What a trunk gives and where (geometry.py) is timm's to say; here it is put in the order of tokens.
"""

import inspect
from typing import Any

import torch
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from encoders.adapters.timm.geometry import Layout, last, measure
from encoders.contract.values import Grid, ImageSize, Outputs, TokenKind
from encoders.runtime.block import Block
from encoders.runtime.tower import Features, Tower, to_patches


class TimmTower(Tower):
    """A timm trunk with, in a CLIP, open_clip's projection head behind it.

    trunk: without classifier, made for `size`. head: pooled [B, C] -> joint space [B, E]; None outside a CLIP.
    """

    def __init__(self, trunk: nn.Module, size: ImageSize, head: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.head = head
        _allow_any_size(trunk)
        self.geometry = measure(trunk, size)

    @property
    def prefix_tokens(self) -> int:
        """Of the final tokens."""
        return self.geometry.prefix_tokens

    @property
    def pools_by_attention(self) -> bool:
        """Whether attention pools the tokens."""
        return getattr(self.trunk, "attn_pool", None) is not None

    @property
    def class_block(self) -> nn.Module | None:
        """As Tower.class_block."""
        return self.trunk.blocks[-1] if type(self.trunk) is VisionTransformer and self._pools_by_class_token else None

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        if self.geometry.trims:
            pixels = self._trimmed(pixels)
        dense = outputs.tokens is TokenKind.DENSE
        by_values = dense and self._pools_by_class_token
        layer = len(self.geometry.layers) - 2 if by_values else outputs.layer
        if layer is None:
            final, tokens, grid = self._with_final(pixels)
        else:
            final, tokens, grid = self._with_layer(pixels, layer, final=outputs.pooled)
        pooled = self._pool(final) if outputs.pooled else None
        if outputs.tokens is None:
            return Features(grid, pooled=pooled)
        if dense:
            patches = self._value_path(tokens) if by_values else self._each_alone(tokens[:, self.prefix_tokens :])
            return Features(grid, tokens=patches, pooled=pooled)
        if outputs.tokens is TokenKind.PROJECTED:
            tokens = self._project(tokens, raw=layer is not None)
        return Features(grid, tokens.shape[1] - grid.rows * grid.cols, tokens, pooled)

    def _with_final(self, pixels: Tensor) -> tuple[Any, Tensor, Grid]:
        """The final features, the tokens [B, prefix + rows * cols, C] in them, and their grid."""
        layout = self.geometry.layout
        if layout is Layout.PREFIX:
            final, patches, grid = self._with_layer(pixels, len(self.geometry.layers) - 1, final=True)
            return final, torch.cat([final, patches], dim=1), grid
        final = self.trunk.forward_features(pixels)
        return final, self._tokens(final), self._grid(final, pixels)

    def _tokens(self, final: Any) -> Tensor:
        """The tokens [B, prefix + rows * cols, C] of final features."""
        features = last(final)
        match self.geometry.layout:
            case Layout.MAP:
                return to_patches(features)
            case Layout.MAP_CHANNELS_LAST:
                return features.flatten(1, 2)
            case Layout.FLAT_MAP:
                return features.transpose(1, 2)
        return features

    def _grid(self, final: Any, pixels: Tensor) -> Grid:
        """The grid of final features. pixels: for their height and width, where the features do not show it."""
        match self.geometry.layout:
            case Layout.MAP:
                return Grid(*last(final).shape[2:])
            case Layout.MAP_CHANNELS_LAST:
                return Grid(*last(final).shape[1:3])
        return self.geometry.grid(*pixels.shape[2:])

    def _with_layer(self, pixels: Tensor, layer: int, *, final: bool) -> tuple[Any, Tensor, Grid]:
        """The final features (or nothing, if not `final`), the layer's raw tokens with prefix, and their grid."""
        given = self.trunk.forward_intermediates(
            pixels,
            indices=[self.geometry.layers[layer]],
            intermediates_only=not final,
            stop_early=not final,  # some trunks stop early unless told not to
            **self.geometry.layer_options,
        )
        features, (found,) = given if final else (None, given)
        tokens, prefix = found if isinstance(found, tuple) else (found, None)
        if tokens.ndim == 4:
            grid, tokens = Grid(*tokens.shape[2:]), to_patches(tokens)
        else:
            grid = self.geometry.grid(*pixels.shape[2:])
        if prefix is not None and prefix.shape[1]:
            tokens = torch.cat([prefix, tokens], dim=1)
        return features, tokens, grid

    def _trimmed(self, pixels: Tensor) -> Tensor:
        """The pixels of whole patches: all that timm's patch embedding of a fixed size reads."""
        height, width = (side // step * step for side, step in zip(pixels.shape[2:], self.geometry.patch, strict=True))
        return pixels[:, :, :height, :width]

    def _pool(self, final: Any) -> Tensor:
        """Pooled as timm does; the mean of the patch tokens where it has none."""
        if self.geometry.pooled_size is None:
            return self._to_joint_space(self._tokens(final)[:, self.prefix_tokens :].mean(dim=1))
        return self._to_joint_space(self.trunk.forward_head(final))

    def _project(self, tokens: Tensor, *, raw: bool) -> Tensor:
        """Tokens [B, N, C] -> [B, N, E]; those of a layer are raw and get the final norm first."""
        if self.geometry.layout is not Layout.TOKENS:
            return self._each_alone(tokens)
        return self._head(self.trunk.norm(tokens) if raw else tokens)

    def _head(self, tokens: Tensor) -> Tensor:
        """What follows a transformer's pooling, for each token. In some CLIPs timm's classifier is the projection."""
        return self._to_joint_space(self.trunk.head(self.trunk.fc_norm(tokens)))

    def _to_joint_space(self, pooled: Tensor) -> Tensor:
        return pooled if self.head is None else self.head(pooled)

    def _each_alone(self, patches: Tensor) -> Tensor:
        """Patch tokens [B, N, C] -> [B, N, E]: the model's own pooling and projection, over one token at a time.

        Averages become the token itself and attention pools their value path, so each patch says what the image's
        embedding would be if it were all there is to see.
        """
        batch, count, width = patches.shape
        alone = patches.reshape(batch * count, 1, width)
        if self.geometry.layout is Layout.MAP_CHANNELS_LAST:
            alone = alone.unsqueeze(1)
        elif self.geometry.layout is Layout.MAP:
            alone = alone.reshape(batch * count, width, 1, 1)
        elif not getattr(self.trunk, "pool_include_prefix", False):
            alone = alone.expand(-1, 1 + self.prefix_tokens, -1)  # the pool cuts its prefix off again
        return self._pool(alone).reshape(batch, count, -1)

    @property
    def _pools_by_class_token(self) -> bool:
        return (
            self.geometry.layout is Layout.TOKENS
            and not self.pools_by_attention
            and getattr(self.trunk, "global_pool", None) == "token"
        )

    def _value_path(self, before_last: Tensor) -> Tensor:
        """Dense features of a tower that pools by its class token: the last block's attention, each token to itself.

        before_last: [B, prefix + N, C], what the last block reads. Returns [B, N, E].
        MaskCLIP (Zhou et al. 2022, arXiv:2112.01071): the values localise, the attended sums do not.
        """
        block = self.trunk.blocks[-1]
        if isinstance(block, Block):
            return self._head(self.trunk.norm(block.alone(before_last[:, self.prefix_tokens :])))
        attention, x = block.attn, block.norm1(before_last)
        if "attn_mask" in inspect.signature(attention.forward).parameters:
            itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
            values = attention(x, attn_mask=itself)
        else:  # attention with relative positions takes no mask
            values = attention.proj(attention.qkv(x).chunk(3, dim=-1)[2])
        return self._head(self.trunk.norm(values)[:, self.prefix_tokens :])


def _allow_any_size(trunk: Any) -> None:
    """Lets a ViT resample its positions, and a Swin make its masks, per call: as dynamic_img_size=True at creation."""
    embed: Any = getattr(trunk, "patch_embed", None)
    if getattr(trunk, "dynamic_img_size", None) is not False or not hasattr(embed, "strict_img_size"):
        return
    trunk.dynamic_img_size = True
    embed.strict_img_size = False
    windows = [module for module in trunk.modules() if hasattr(module, "dynamic_mask")]
    for block in windows:
        block.dynamic_mask = True
        block.attn_mask = None
    if windows:
        return
    embed.flatten = False
    embed.output_fmt = Format.NHWC
    rope: Any = getattr(trunk, "rope", None)
    if hasattr(rope, "_use_cached_embed"):
        rope._use_cached_embed = False  # its bands are kept, so it builds the angles of any grid
