"""The vision-language architectures of transformers that are read by description: one Vlm a model type."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.config import positive
from encoders.adapters.hf.family import Geometry, interpolating, patches, plain, with_class_token
from encoders.adapters.hf.native import at_most, native_resolution
from encoders.adapters.hf.packed import attend_at_once, packed, packed_features, unpacked
from encoders.adapters.hf.pixtral import batch_images
from encoders.adapters.hf.vlm import LANGUAGE, Vlm, VlmTower, like, vision_half, whole_model
from encoders.contract.errors import EncoderIdError
from encoders.contract.spec import EncoderSpec
from encoders.runtime.parts import TorchParts


def _of(geometry: Callable[..., Geometry], **options: Any) -> Callable[[Any], Geometry]:
    """The geometry of the vision tower, of the whole configuration."""
    return lambda config: geometry(config.vision_config, **options)


_OF_ONE_SIZE = _of(patches, prefix_tokens=0, resizes=False)
"""Of a tower whose tokens are only projected at its own size: the projection takes the grid for that square."""


def _merge(config: Any) -> int:
    return positive(config.vision_config.spatial_merge_size, "spatial_merge_size")


def _qwen_geometry(config: Any, *, width: str = "hidden_size") -> Geometry:
    return native_resolution(config.vision_config, merge=_merge(config), width=width)


_QWEN = Vlm(
    tower=attrgetter("visual"),
    geometry=_qwen_geometry,
    arguments=packed,
    project=packed_features,
    row_major=unpacked,
    projected_size=lambda config: int(config.vision_config.out_hidden_size),
    merge=_merge,
    processor="Qwen2VLImageProcessor",
    bound=False,
    ready=lambda model: attend_at_once(model.visual),
)
_SIGLIP = Vlm(
    geometry=_of(patches, prefix_tokens=0),
    arguments=interpolating,
    towers=("siglip_vision_model",),
    processor="SiglipImageProcessor",
)


_PIXTRAL = Vlm(
    geometry=_of(native_resolution),
    arguments=plain,
    bound=False,
    towers=("pixtral",),
    processor="PixtralImageProcessor",
    ready=lambda model: batch_images(model.vision_tower),
)


def _glm_ready(model: Any) -> None:
    """GLM-4V's learned positions are told the sizes of images where its tokens are."""

    def moved(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.to(given[0].device) for value in given)

    model.visual.embeddings.register_forward_pre_hook(moved)
    attend_at_once(model.visual)


def _with_all_states(model: Any, arguments: dict[str, Any]) -> Any:
    """Mistral 3's features: its own takes one image a row of tokens, ours a batch."""
    pixels, config = arguments["pixel_values"], model.config
    output = model.vision_tower(**arguments, output_hidden_states=True, return_dict=True)
    chosen = config.vision_feature_layer
    layers = [chosen] if isinstance(chosen, int) else chosen
    tokens = torch.cat([output.hidden_states[layer] for layer in layers], dim=-1)
    sizes = [tuple(pixels.shape[2:])] * len(pixels)
    output.pooler_output = model.multi_modal_projector(tokens.flatten(0, 1), sizes).unflatten(0, (len(pixels), -1))
    return output


def _connected(model: Any, arguments: dict[str, Any]) -> Any:
    """Idefics3's features: its own first looks for images that are all zeros, ours has none."""
    output = model.vision_model(**arguments)
    output.pooler_output = model.connector(output.last_hidden_state)
    return output


class _IdeficsTower:
    """Idefics3's tower on whole images: every patch is seen, so nothing is masked."""

    def forward(self: Any, pixel_values: Tensor, **options: Any) -> Any:
        count, _, height, width = pixel_values.shape
        seen = torch.ones(
            (count, height // self.patch_size, width // self.patch_size), dtype=torch.bool, device=pixel_values.device
        )
        embedded = self.embeddings(pixel_values=pixel_values, patch_attention_mask=seen)
        encoded = self.encoder(inputs_embeds=embedded, attention_mask=None)
        return BaseModelOutputWithPooling(last_hidden_state=self.post_layernorm(encoded.last_hidden_state))


def _unmasked(model: Any) -> None:
    vision = model.vision_model
    vision.__class__ = like(type(vision), _IdeficsTower)


_IDEFICS = Vlm(
    tower=attrgetter("vision_model"),
    geometry=_OF_ONE_SIZE,
    arguments=plain,
    project=_connected,
    merge=lambda config: positive(config.scale_factor, "scale_factor"),
    processor="Idefics3ImageProcessor",
    ready=_unmasked,
)


def _queried(model: Any, arguments: dict[str, Any]) -> Any:
    """BLIP-2's features: its own mask, which hides nothing, would be looked into."""
    output = model.vision_model(**arguments)
    queries = model.query_tokens.expand(len(output.last_hidden_state), -1, -1)
    answers = model.qformer(query_embeds=queries, encoder_hidden_states=output.last_hidden_state)[0]
    output.pooler_output = model.language_projection(answers)
    return output


def _gemma_merge(config: Any) -> int:
    """As Gemma3MultiModalProjector: so many patches a side are averaged that mm_tokens_per_image are left."""
    vision, tokens = config.vision_config, positive(config.mm_tokens_per_image, "mm_tokens_per_image")
    rows, side = int(vision.image_size // vision.patch_size), math.isqrt(tokens)
    if side * side != tokens or rows % side:
        raise ValueError(f"its {rows}x{rows} patches cannot be pooled to {tokens} tokens (mm_tokens_per_image)")
    return rows // side


def _mistral_merge(config: Any) -> int:
    return positive(config.spatial_merge_size, "spatial_merge_size")


def _internvl_merge(config: Any) -> int:
    return positive(round(1 / config.downsample_ratio) if config.downsample_ratio else 0, "downsample_ratio")


VLMS: dict[str, Vlm] = {
    "aya_vision": replace(
        _SIGLIP, geometry=_OF_ONE_SIZE, merge=lambda config: positive(config.downsample_factor, "downsample_factor")
    ),
    "blip-2": Vlm(
        processor="BlipImageProcessor",
        tower=attrgetter("vision_model"),
        geometry=_of(with_class_token),
        arguments=interpolating,
        project=_queried,
        pooling=lambda model: "class",
        queries=lambda config: int(config.num_query_tokens),
        unused=rf"{LANGUAGE}|.*position_ids$",
    ),
    "cohere2_vision": replace(
        _SIGLIP, geometry=_OF_ONE_SIZE, merge=lambda config: positive(config.downsample_factor, "downsample_factor")
    ),
    "gemma3": replace(_SIGLIP, geometry=_OF_ONE_SIZE, merge=_gemma_merge, processor="Gemma3ImageProcessor"),
    "glm4v": replace(_QWEN, norm=attrgetter("post_layernorm"), processor="Glm4vImageProcessor", ready=_glm_ready),
    "idefics3": _IDEFICS,
    "internvl": Vlm(
        geometry=_of(patches, prefix_tokens=1, resizes=False),
        arguments=plain,
        merge=_internvl_merge,
        drops=lambda config: int(config.vision_feature_select_strategy == "default"),
        towers=("internvl_vision",),
        processor="GotOcr2ImageProcessor",
    ),
    "mistral3": replace(
        _PIXTRAL,
        geometry=lambda config: native_resolution(config.vision_config, merge=_mistral_merge(config)),
        project=_with_all_states,
        merge=_mistral_merge,
    ),
    "paligemma": replace(_SIGLIP, projected_size=lambda config: int(config.projection_dim)),
    "qwen2_5_vl": _QWEN,
    "qwen2_vl": replace(
        _QWEN,
        geometry=partial(_qwen_geometry, width="embed_dim"),
        projected_size=lambda config: int(config.vision_config.hidden_size),
    ),
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "smolvlm": replace(_IDEFICS, processor="SmolVLMImageProcessor"),
}


def build_vlm(checkpoint: Checkpoint) -> TorchParts:
    """The vision tower of a vision-language model and what projects its tokens."""
    config = checkpoint.config()
    return vlm_parts(checkpoint, VLMS[config.model_type], config)


_LLAVA = Vlm(
    geometry=_of(with_class_token),
    arguments=plain,
    pooling=lambda model: "class",
    drops=lambda config: int(config.vision_feature_select_strategy == "default"),
    processor="LlavaImageProcessor",
)
LLAVA_TOWERS: dict[str, Vlm] = {
    "dinov2": _LLAVA,
    "dinov2_with_registers": _LLAVA,
    "pixtral": replace(_PIXTRAL, drops=_LLAVA.drops, language_model="pixtral"),
}
"""By the type of LLaVA's vision tower."""


def vlm_parts(checkpoint: Checkpoint, family: Vlm, config: Any) -> TorchParts:
    """The parts of a vision-language model, read as `family` says."""
    tower_type = config.vision_config.model_type
    if family.towers and tower_type not in family.towers:
        raise EncoderIdError(
            f"{checkpoint.id} has a vision tower of type '{tower_type}', which is not supported in "
            f"{config.model_type}. Supported: {', '.join(family.towers)}.",
            model=checkpoint.id,
        )
    seen = checkpoint.seen(family.processor)
    geometry = family.geometry(config) if family.bound else at_most(family.geometry(config), seen.size)
    rows, cols = geometry.grid(*geometry.native, None)
    if rows % family.merge(config) or cols % family.merge(config):
        raise ValueError(f"its {rows}x{cols} patches cannot be merged {family.merge(config)} by {family.merge(config)}")
    whole = checkpoint.model(vision_half(whole_model(config)), config, unused=family.unused)
    model = getattr(whole, "model", whole)
    spec = EncoderSpec(
        id=checkpoint.id,
        family="vit",
        image_size=geometry.native,
        patch_size=geometry.patch_size,
        prefix_tokens=geometry.prefix_tokens,
        hidden_size=geometry.hidden_size,
        embed_dim=None,
        pooled_size=geometry.hidden_size,
        pooling=family.pooling(model),
        layers=0,
        resolutions=geometry.resolutions,
        preprocessing=seen.preprocessing,
        projected_size=family.projected_size(config),
        projection_drops=family.drops(config),
        projection_merges=family.merge(config),
        projected_queries=family.queries(config),
        language_model=family.language_model or config.model_type,
    )
    tower = VlmTower(
        model,
        family,
        geometry,
        projected_grid=spec.projected_grid,
        projected_prefix=max(spec.prefix_tokens - spec.projection_drops, 0) if spec.projected_queries is None else 0,
        encoder_id=checkpoint.id,
    )
    _check_layers(config, tower.depth)
    return TorchParts(replace(spec, layers=tower.depth), tower)


def _check_layers(config: Any, depth: int) -> None:
    """Raises ValueError for a layer to project that the tower does not have."""
    chosen = getattr(config, "vision_feature_layer", None)
    for layer in [chosen] if isinstance(chosen, int) else chosen or ():
        if not -depth - 1 <= layer <= depth:
            raise ValueError(f"vision_feature_layer {layer} is not one of the tower's {depth} layers")
