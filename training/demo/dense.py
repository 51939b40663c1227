"""Image features location by location, in the joint space: what heat maps are made of and what training supervises.

One path a family. Each leaves out what mixes locations at the end of the tower (the last attention, the pooling),
because projected final tokens do not say where things are, even in a model that classifies well.
"""

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional


def features(visual: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The pooled and the dense embeddings from one forward pass, neither normalised.

    Args:
        visual: An open_clip image tower: VisionTransformer, ModifiedResNet, or TimmModel around a ConvNeXt.
        pixels: [B, 3, H, W], normalised.

    Returns:
        pooled [B, embed_dim], equal to `visual(pixels)`, and dense [B, rows, cols, embed_dim].
    """
    if isinstance(visual, VisionTransformer):
        return _vit(visual, pixels)
    if isinstance(visual, ModifiedResNet):
        return _resnet(visual, pixels)
    if isinstance(visual, TimmModel):
        return _convnext(visual, pixels)
    raise TypeError(f"no dense path for {type(visual).__name__}")


def _vit(visual: VisionTransformer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Value-only path of the last block (MaskCLIP, arXiv:2112.01071): no attention, no residual, no MLP."""
    last = visual.transformer.resblocks[-1]
    taken: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    try:
        pooled = visual(pixels)
    finally:
        handle.remove()
    tokens = taken[0]  # [B, 1 + rows * cols, width]
    attention = last.attn
    values = functional.linear(
        last.ln_1(tokens), attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
    )
    dense = visual.ln_post(attention.out_proj(values))[:, 1:] @ visual.proj
    rows, cols = pixels.shape[-2] // visual.patch_size[0], pixels.shape[-1] // visual.patch_size[1]
    return pooled, dense.unflatten(1, (rows, cols))


def _resnet(visual: ModifiedResNet, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The attention pool's value and output projections at each location, without its positions."""
    feature_map = visual.stem(pixels)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        feature_map = stage(feature_map)  # at the end [B, channels, rows, cols]
    pool = visual.attnpool
    return pool(feature_map), pool.c_proj(pool.v_proj(feature_map.permute(0, 2, 3, 1)))


def _convnext(visual: TimmModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The head's norm and the projection at each location, as the trunk's head does them after pooling."""
    feature_map = visual.trunk.forward_features(pixels)
    pooled = visual.head(visual.trunk.forward_head(feature_map))
    return pooled, visual.head(visual.trunk.head.norm(feature_map).permute(0, 2, 3, 1))


def points(dense: Tensor, text: Tensor) -> Tensor:
    """Cosine of every location with one text an image: [B, rows, cols] from [B, rows, cols, D] and [B, D]."""
    return torch.einsum("brcd,bd->brc", functional.normalize(dense, dim=-1), functional.normalize(text, dim=-1))
