"""The vision architectures of transformers that are read by description: one Family a model type."""

import math
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from encoders.adapters.hf.checkpoint import CLASSIFIER, Checkpoint
from encoders.adapters.hf.config import pair
from encoders.adapters.hf.family import (
    Family,
    FamilyTower,
    Geometry,
    patches,
    plain,
    pyramid,
    with_class_token,
    without_prefix,
)
from encoders.adapters.hf.native import native_resolution
from encoders.adapters.hf.pixtral import batch_images
from encoders.adapters.hf.quirks import forget_sizes, index_positions_afresh, normalise_in_float32
from encoders.contract.spec import EncoderSpec, Resolutions
from encoders.runtime.parts import TorchParts
from encoders.runtime.tower import largest_size

_OTHER_HALF = r"text_|logit_scale|temperature|visual_projection|vision_proj\.|itm_head\."
"""Of a checkpoint of two towers."""


def _pooler_size(model: Any) -> int | None:
    return None if model.pooler is None else int(model.pooler.dense.out_features)


def _unmasked(model: Any, pixels: Tensor, native: bool) -> dict[str, Any]:
    """ViT-MAE's arguments: patches are shuffled by rising noise, so they stay in order; none is dropped."""
    patch = model.config.patch_size
    count = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
    noise = torch.arange(count, dtype=torch.float32, device=pixels.device).expand(len(pixels), count)
    return {"pixel_values": pixels, "noise": noise, "interpolate_pos_encoding": not native}


def _mask_nothing(config: Any) -> None:
    config.mask_ratio = 0.0


def _swin(config: Any) -> Geometry:
    """A Swin's windows are of one size, and the last stage must hold one."""
    return pyramid(config, minimum=config.patch_size * 2 ** (len(config.depths) - 1) * (config.window_size - 1) + 1)


def _align_stages(config: Any) -> list[tuple[int, int]]:
    """ALIGN's stages, each of one grid: (index of its last block, its width)."""
    from transformers.models.align.modeling_align import round_filters

    ends, blocks = [], 0
    for base, repeats in enumerate(config.num_block_repeats):
        blocks += math.ceil(config.depth_coefficient * repeats)
        if base + 1 == len(config.strides) or config.strides[base + 1] == 2:
            ends.append((blocks - 1, round_filters(config, config.out_channels[base])))
    return ends


def _align(config: Any) -> Geometry:
    """ALIGN's EfficientNet: halvings round down, but after some blocks up; at multiples of its stride it is all one."""
    native, widths = pair(config.image_size), tuple(width for _, width in _align_stages(config))
    stride = pair(2 ** len(widths))
    return Geometry(
        native=native,
        patch_size=stride,
        hidden_size=widths[-1],
        resolutions=Resolutions(multiple=stride, minimum=stride, maximum=largest_size(stride)),
        layer_sizes=widths,
    )


def _swin_v2(config: Any) -> Geometry:
    """Absolute positions, which no checkpoint of Microsoft's has, are not interpolated rightly by transformers."""
    return pyramid(config, resizes=not config.use_absolute_embeddings)


_VIT = Family(
    "ViTModel",
    "ViTImageProcessor",
    pooled_size=_pooler_size,
    unused=rf"{CLASSIFIER}|.*mask_token$",
    optional=r"pooler\.",
)
_DINOV2 = Family(
    "Dinov2Model",
    "BitImageProcessor",
    blocks=attrgetter("encoder.layer"),
    arguments=plain,
    bound=False,
    unused=CLASSIFIER,
)
_SWIN = Family(
    "SwinModel",
    "ViTImageProcessor",
    blocks=lambda model: [stage.blocks[-1] for stage in model.encoder.layers],  # ahead of what halves the grid
    geometry=_swin,
    pooling=lambda model: "mean",
    unused=rf"{CLASSIFIER}|.*mask_token$",
    family="swin",
    ready=forget_sizes,
)
_BEIT = Family(
    "BeitModel",
    "BeitImageProcessor",
    arguments=plain,
    pooling=lambda model: "mean" if model.config.use_mean_pooling else "class",
    unused=rf"{CLASSIFIER}|lm_head\.|layernorm\.|(decode|auxiliary)_head\.|fpn\d\.|.*mask_token$",
    optional=r"pooler\.",
    ready=index_positions_afresh,
)

_CLIP_LIKE = Family("", "CLIPImageProcessor", blocks=attrgetter("encoder.layers"))

FAMILIES: dict[str, Family] = {
    "aimv2_vision_model": replace(
        _CLIP_LIKE,
        architecture="Aimv2VisionModel",
        geometry=lambda config: patches(config, prefix_tokens=0, resizes=config.is_native),
        arguments=plain,
        pooling=lambda model: "attention" if model.use_head else "mean",
        unused=_OTHER_HALF,
    ),
    "align_vision_model": Family(
        "AlignVisionModel",
        "EfficientNetImageProcessor",
        blocks=lambda model: [model.encoder.blocks[end] for end, _ in _align_stages(model.config)],
        geometry=_align,
        arguments=plain,
        pooling=lambda model: model.config.pooling_type,
        unused=_OTHER_HALF,
        family="efficientnet",
    ),
    "beit": _BEIT,
    "blip_vision_model": replace(
        _CLIP_LIKE, architecture="BlipVisionModel", processor="BlipImageProcessor", unused=_OTHER_HALF
    ),
    "data2vec-vision": replace(
        _BEIT,
        architecture="Data2VecVisionModel",
        blocks=attrgetter("encoder.layer"),
        options={"add_pooling_layer": True},
    ),
    "deit": replace(
        _VIT,
        architecture="DeiTModel",
        processor="DeiTImageProcessor",
        geometry=lambda config: patches(config, prefix_tokens=2),
        unused=rf"{_VIT.unused}|(cls|distillation)_classifier\.",
    ),
    "dinov2": _DINOV2,
    "dinov2_with_registers": replace(_DINOV2, architecture="Dinov2WithRegistersModel"),
    "dinov3_vit": replace(
        _DINOV2, architecture="DINOv3ViTModel", processor="DINOv3ViTImageProcessor", blocks=attrgetter("model.layer")
    ),
    "dpt": Family(
        "DPTModel",
        "DPTImageProcessor",
        blocks=attrgetter("encoder.layer"),
        geometry=lambda config: patches(config, prefix_tokens=1, resizes=not config.is_hybrid),
        arguments=plain,
        pooled_size=_pooler_size,
        unused=r"neck\.|head\.|auxiliary_head\.",
        optional=r"pooler\.",
    ),
    "ijepa": replace(
        _VIT,
        architecture="IJepaModel",
        geometry=without_prefix,
        pooling=lambda model: "mean",
        pooled_size=lambda model: None,
        optional="",
    ),
    "mlcd_vision_model": replace(
        _CLIP_LIKE,
        architecture="MLCDVisionModel",
        arguments=plain,
        final=lambda model, output: model.post_layernorm(output.last_hidden_state),  # it norms the class token alone
        bound=False,
    ),
    "pixtral": Family(
        "PixtralVisionModel",
        "PixtralImageProcessor",
        blocks=attrgetter("transformer.layers"),
        geometry=native_resolution,
        arguments=plain,
        pooling=lambda model: "mean",
        ready=batch_images,
    ),
    "swin": _SWIN,
    "swinv2": replace(_SWIN, architecture="Swinv2Model", geometry=_swin_v2, ready=normalise_in_float32),
    "vit": _VIT,
    "vit_mae": Family(
        "ViTMAEModel",
        "ViTImageProcessor",
        geometry=with_class_token,
        arguments=_unmasked,
        unused=CLASSIFIER,
        prepare=_mask_nothing,
    ),
}


def build_family(checkpoint: Checkpoint) -> TorchParts:
    """A vision tower by itself, read as its Family says."""
    config = checkpoint.config()
    family = FAMILIES[config.model_type]
    family.prepare(config)
    architecture = getattr(transformers, family.architecture)
    model = checkpoint.model(architecture, config, unused=family.unused, optional=family.optional, **family.options)
    return family_parts(checkpoint, family, config, model)


def family_parts(
    checkpoint: Checkpoint, family: Family, config: Any, model: Any, projection: nn.Module | None = None
) -> TorchParts:
    """The parts of a vision model, whose own configuration is `config`.

    projection: of the pooled vectors into the joint space.
    """
    geometry = family.geometry(config)
    seen = checkpoint.seen(family.processor)
    tower = FamilyTower(model, family, geometry, projection)
    spec = EncoderSpec(
        id=checkpoint.id,
        family=family.family,
        image_size=seen.size if seen.configured and not family.bound else geometry.native,
        patch_size=geometry.patch_size,
        prefix_tokens=geometry.prefix_tokens,
        hidden_size=geometry.hidden_size,
        embed_dim=None,
        pooled_size=family.pooled_size(model) or geometry.hidden_size,
        pooling=tower.pooling,
        layers=tower.depth,
        layer_sizes=geometry.layer_sizes,
        grid_offset=geometry.grid_offset,
        resolutions=geometry.resolutions,
        preprocessing=seen.preprocessing,
    )
    return TorchParts(spec, tower)
