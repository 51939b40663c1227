"""A timm trunk as a Tower: backbones by themselves, and the towers that open_clip takes from timm.

Transformers give [B, N, C] after their final norm; CNNs and Swins their last feature map.
"""

from typing import Any

import torch
from timm.layers import Format
from torch import Tensor, nn

from encoders.contract.values import Grid, Outputs, TokenKind
from encoders.runtime.tower import Features, Tower, to_patches


class TimmTower(Tower):
    """A timm trunk with, in a CLIP, open_clip's projection head behind it.

    trunk: without classifier. head: pooled [B, C] -> joint space [B, E]; None outside a CLIP.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.head = head
        self.prefix_tokens: int = getattr(trunk, "num_prefix_tokens", 0)
        self.channels_last: bool = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        self.is_transformer = _is_transformer(trunk)
        self.pools_by_attention: bool = getattr(trunk, "attn_pool", None) is not None
        self.stages = _stages(trunk)
        _allow_any_size(trunk)

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        dense = outputs.tokens is TokenKind.DENSE
        by_values = dense and self._pools_by_class_token
        layer = len(self.stages) - 2 if by_values else outputs.layer
        if layer is None:
            final = self.trunk.forward_features(pixels)
            tokens, grid = self._tokens(final), self.grid_of(final, pixels)
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
        return Features(grid, self.prefix_tokens, tokens, pooled)

    def _with_layer(self, pixels: Tensor, layer: int, *, final: bool) -> tuple[Tensor, Tensor, Grid]:
        """The final features (or nothing, if not `final`), the layer's raw tokens with prefix, and their grid."""
        options: dict[str, Any] = {"indices": [self.stages[layer]], "norm": False, "output_fmt": "NCHW"}
        if self.is_transformer:
            options["return_prefix_tokens"] = True
        if final:
            features, (found,) = self.trunk.forward_intermediates(pixels, **options)
        else:
            features = pixels.new_empty(0)
            (found,) = self.trunk.forward_intermediates(pixels, intermediates_only=True, stop_early=True, **options)
        patches, prefix = found if isinstance(found, tuple) else (found, None)
        grid = Grid(patches.shape[2], patches.shape[3])
        tokens = to_patches(patches)
        if prefix is not None and prefix.shape[1]:
            tokens = torch.cat([prefix, tokens], dim=1)
        return features, tokens, grid

    def grid_of(self, final: Tensor, pixels: Tensor) -> Grid:
        """The grid of the final features. pixels: for their height and width; CNNs do not need them."""
        if final.ndim == 3:
            patch = self.trunk.patch_embed.feat_ratio(as_scalar=False)
            return Grid(pixels.shape[2] // patch[0], pixels.shape[3] // patch[1])
        return Grid(final.shape[1], final.shape[2]) if self.channels_last else Grid(final.shape[2], final.shape[3])

    def _tokens(self, final: Tensor) -> Tensor:
        if final.ndim == 3:
            return final
        return final.flatten(1, 2) if self.channels_last else to_patches(final)

    def _pool(self, final: Tensor) -> Tensor:
        return self._to_joint_space(self.trunk.forward_head(final))

    def _project(self, tokens: Tensor, *, raw: bool) -> Tensor:
        """Tokens [B, N, C] -> [B, N, E]; those of a layer are raw and get the final norm first."""
        if not self.is_transformer:
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
        if not self.is_transformer:
            alone = alone.unsqueeze(1) if self.channels_last else alone.reshape(batch * count, width, 1, 1)
        elif not getattr(self.trunk, "pool_include_prefix", False):
            alone = alone.expand(-1, 1 + self.prefix_tokens, -1)  # the pool cuts its prefix off again
        return self._pool(alone).reshape(batch, count, -1)

    @property
    def _pools_by_class_token(self) -> bool:
        return self.is_transformer and not self.pools_by_attention and self.trunk.global_pool == "token"

    def _value_path(self, before_last: Tensor) -> Tensor:
        """Dense features of a tower that pools by its class token: the last block's attention, each token to itself.

        before_last: [B, prefix + N, C], what the last block reads. Returns [B, N, E].
        MaskCLIP (Zhou et al. 2022, arXiv:2112.01071): the values localise, the attended sums do not.
        """
        block = self.trunk.blocks[-1]
        count = before_last.shape[1]
        itself = torch.eye(count, dtype=torch.bool, device=before_last.device)
        values = self.trunk.norm(block.attn(block.norm1(before_last), attn_mask=itself))
        return self._head(values[:, self.prefix_tokens :])


def _is_transformer(trunk: nn.Module) -> bool:
    """Whether features are [B, N, C] rather than a map."""
    return hasattr(trunk, "blocks") and hasattr(trunk, "num_prefix_tokens")


def _stages(trunk: Any) -> list[int]:
    """Layer k -> timm's index of it; blocks of a transformer, stages of a CNN without its stem."""
    if _is_transformer(trunk):
        return list(range(len(trunk.blocks)))
    stems = ("act1", "bn1", "stem", "conv_stem", "relu")
    return [k for k, stage in enumerate(trunk.feature_info) if stage["module"].split(".")[0] not in stems]


def _allow_any_size(trunk: Any) -> None:
    """Lets a ViT resample its positions per call, as timm's dynamic_img_size=True at creation does."""
    embed: Any = getattr(trunk, "patch_embed", None)
    if getattr(trunk, "dynamic_img_size", None) is not False or not hasattr(embed, "strict_img_size"):
        return
    trunk.dynamic_img_size = True
    embed.strict_img_size = False
    embed.flatten = False
    embed.output_fmt = Format.NHWC
    rope: Any = getattr(trunk, "rope", None)
    if hasattr(rope, "_use_cached_embed"):
        rope._use_cached_embed = False  # its bands are kept, so it builds the angles of any grid
