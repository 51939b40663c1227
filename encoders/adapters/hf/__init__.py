"""`hf:NAME[@REVISION]`, `hf:/path/to/folder`, `hf:...@random`: checkpoints in transformers' format.

A folder is read without network. No code from a checkpoint is run. `@random` builds the folder's configuration with
seeded random weights; its text half is left out if there is no tokenizer.

Without preprocessor_config.json (or processor_config.json) the defaults of the family's processor class apply, at the
image size of config.json: CLIP's, SigLIP's, BiT's for DINOv2, DINOv3ViT's, ConvNeXt's (for ResNet too), ViT's, LLaVA's.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import transformers
from torch import nn

from encoders.adapters.hf.checkpoint import Checkpoint, quiet
from encoders.adapters.hf.preprocessing import Seen
from encoders.adapters.hf.towers import (
    ClipTower,
    CnnTower,
    Dinov2Tower,
    Dinov3ConvNextTower,
    Dinov3Tower,
    HfText,
    LlavaTower,
    ResNetTower,
    Siglip2Tower,
    SiglipTower,
    VanillaVitTower,
    VitTower,
)
from encoders.adapters.registry import EncoderId
from encoders.contract.encoder import Placement
from encoders.contract.errors import EncoderIdError
from encoders.contract.spec import EncoderSpec, Resolutions, Scoring
from encoders.contract.values import ImageSize
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.tower import TextTower, Tower, largest_size
from encoders.runtime.weights import fitting, number


class Parts(NamedTuple):
    """What a family makes of a checkpoint."""

    spec: EncoderSpec
    tower: Tower
    text: TextTower | None = None


def load(encoder_id: EncoderId, placement: Placement) -> TorchEncoder:
    """A transformers checkpoint as an Encoder.

    Raises EncoderIdError for a model type that is not supported; WeightsError for a checkpoint that cannot be had or
    does not fit.
    """
    checkpoint = Checkpoint.of(encoder_id, placement)
    with fitting(checkpoint.id, checkpoint.name), quiet():
        model_type = checkpoint.model_type()
        if model_type not in _FAMILIES:
            raise EncoderIdError(
                f"{checkpoint.id} is of type '{model_type}', which is not supported. "
                f"Supported: {', '.join(sorted(_FAMILIES))}.",
                model=checkpoint.id,
                supported=sorted(_FAMILIES),
            )
        parts = _FAMILIES[model_type](checkpoint)
    return TorchEncoder(parts.spec, parts.tower, parts.text, placement=placement)


def _clip(checkpoint: Checkpoint) -> Parts:
    config = checkpoint.config()
    model = checkpoint.model(transformers.CLIPModel, config)
    parts = _clip_parts(checkpoint, config.vision_config, model.vision_model, model.visual_projection)
    scoring = Scoring("softmax", logit_scale=number(model.logit_scale.exp()))
    return _with_text(checkpoint, parts, config.text_config, model.text_model, model.text_projection, scoring)


def _clip_vision(checkpoint: Checkpoint) -> Parts:
    config, other_half = checkpoint.config(), r"(text_model|text_projection|logit_scale)"
    if "CLIPVisionModelWithProjection" in (config.architectures or []):
        model = checkpoint.model(transformers.CLIPVisionModelWithProjection, config, unused=other_half)
        return _clip_parts(checkpoint, config, model.vision_model, model.visual_projection)
    model = checkpoint.model(transformers.CLIPVisionModel, config, unused=rf"{other_half}|visual_projection")
    return _clip_parts(checkpoint, config, model, None)


def _clip_parts(checkpoint: Checkpoint, config: Any, model: Any, projection: nn.Linear | None) -> Parts:
    tower = ClipTower(model, projection, **_vit_facts(config))
    spec = _vit_spec(checkpoint, config, tower, checkpoint.seen("CLIPImageProcessor"))
    if projection is not None:
        width = projection.out_features
        spec = replace(spec, embed_dim=width, pooled_size=width, projects=True, dense=True)
    return Parts(spec, tower)


def _siglip(checkpoint: Checkpoint) -> Parts:
    config = checkpoint.config()
    naflex = config.model_type == "siglip2"
    model = checkpoint.model(transformers.Siglip2Model if naflex else transformers.SiglipModel, config)
    parts = _siglip_parts(checkpoint, config.vision_config, model.vision_model)
    scoring = Scoring("sigmoid", logit_scale=number(model.logit_scale.exp()), logit_bias=number(model.logit_bias))
    return _with_text(checkpoint, parts, config.text_config, model.text_model, None, scoring)


def _siglip_vision(checkpoint: Checkpoint) -> Parts:
    config = checkpoint.config()
    naflex = config.model_type == "siglip2_vision_model"
    unused = r"text_model|logit_scale|logit_bias"
    if not getattr(config, "vision_use_head", True):
        unused += r"|(vision_model\.)?head\."
    architecture = transformers.Siglip2VisionModel if naflex else transformers.SiglipVisionModel
    model = checkpoint.model(architecture, config, unused=unused)
    return _siglip_parts(checkpoint, config, model)


def _siglip_parts(checkpoint: Checkpoint, config: Any, model: Any) -> Parts:
    naflex = config.model_type == "siglip2_vision_model"
    seen = checkpoint.seen("Siglip2ImageProcessor" if naflex else "SiglipImageProcessor")
    tower = (Siglip2Tower if naflex else SiglipTower)(model, **_vit_facts(config))
    spec = _vit_spec(checkpoint, config, tower, seen)
    if tower.has_head:
        spec = replace(spec, embed_dim=spec.hidden_size, dense=True)
    return Parts(spec, tower)


def _with_text(
    checkpoint: Checkpoint, parts: Parts, config: Any, model: nn.Module, projection: Any, scoring: Scoring
) -> Parts:
    """`parts` with the text half, whose configuration is `config`."""
    tokenizer = checkpoint.tokenizer(vocabulary=config.vocab_size)
    if tokenizer is None:
        return parts
    length = int(config.max_position_embeddings)
    text = HfText(model, projection, tokenizer, context_length=length)
    return parts._replace(spec=replace(parts.spec, scoring=scoring, context_length=length), text=text)


def _dinov2(checkpoint: Checkpoint) -> Parts:
    config = checkpoint.config()
    registers = config.model_type == "dinov2_with_registers"
    architecture = transformers.Dinov2WithRegistersModel if registers else transformers.Dinov2Model
    tower = Dinov2Tower(checkpoint.model(architecture, config, unused=_CLASSIFIER), **_vit_facts(config))
    return Parts(_vit_spec(checkpoint, config, tower, checkpoint.seen("BitImageProcessor")), tower)


def _dinov3(checkpoint: Checkpoint) -> Parts:
    config = checkpoint.config()
    model = checkpoint.model(transformers.DINOv3ViTModel, config, unused=_CLASSIFIER)
    tower = Dinov3Tower(model, **_vit_facts(config))
    return Parts(_vit_spec(checkpoint, config, tower, checkpoint.seen("DINOv3ViTImageProcessor")), tower)


def _vit(checkpoint: Checkpoint) -> Parts:
    config = checkpoint.config()
    model = checkpoint.model(transformers.ViTModel, config, unused=_CLASSIFIER, optional=r"pooler\.")
    tower = VanillaVitTower(model, **_vit_facts(config))
    spec = _vit_spec(checkpoint, config, tower, checkpoint.seen("ViTImageProcessor"))
    if model.pooler is not None:
        spec = replace(spec, pooled_size=model.pooler.dense.out_features)
    return Parts(spec, tower)


def _convnext(checkpoint: Checkpoint) -> Parts:
    config = checkpoint.config()
    v2 = config.model_type == "convnextv2"
    model = checkpoint.model(
        transformers.ConvNextV2Model if v2 else transformers.ConvNextModel, config, unused=_CLASSIFIER
    )
    seen = checkpoint.seen("ConvNextImageProcessor")
    stride = config.patch_size * 2 ** (len(config.depths) - 1)
    return Parts(_cnn_spec(checkpoint, config, seen, family="convnext", stride=stride), CnnTower(model))


def _dinov3_convnext(checkpoint: Checkpoint) -> Parts:
    config = checkpoint.config()
    model = checkpoint.model(transformers.DINOv3ConvNextModel, config, unused=_CLASSIFIER)
    seen = checkpoint.seen("DINOv3ViTImageProcessor")
    spec = _cnn_spec(checkpoint, config, seen, family="convnext", stride=4 * 2 ** (len(config.depths) - 1))
    return Parts(replace(spec, prefix_tokens=1), Dinov3ConvNextTower(model))


def _resnet(checkpoint: Checkpoint) -> Parts:
    config = checkpoint.config()
    model = checkpoint.model(transformers.ResNetModel, config, unused=_CLASSIFIER)
    seen = checkpoint.seen("ConvNextImageProcessor")
    stride = (8 if config.downsample_in_first_stage else 4) * 2 ** (len(config.depths) - 1)
    spec = _cnn_spec(checkpoint, config, seen, family="resnet", stride=stride)
    return Parts(replace(spec, grid_offset=stride - 1), ResNetTower(model))  # every halving rounds up


_CLASSIFIER = r"(classifier|decoder)\."
"""Heads of ...ForImageClassification and ...ForMaskedImageModeling."""


def _llava(checkpoint: Checkpoint) -> Parts:
    """The vision tower and the projector; the language model is neither read nor kept."""
    config = checkpoint.config()
    vision = config.vision_config
    if vision.model_type not in _LLAVA_TOWERS:
        raise EncoderIdError(
            f"{checkpoint.id} has a vision tower of type '{vision.model_type}', which is not supported. "
            f"Supported: {', '.join(sorted(_LLAVA_TOWERS))}.",
            model=checkpoint.id,
        )
    unused = r"(model\.)*(language_model|lm_head|image_newline)"
    model = checkpoint.model(_vision_half(config.model_type), config, unused=unused)
    inner = _LLAVA_TOWERS[vision.model_type](model.vision_tower, **_vit_facts(vision))
    seen = checkpoint.seen("LlavaImageProcessor")
    # ViP-LLaVA's plural name is the only one up to transformers 5.17
    chosen = getattr(config, "vision_feature_layers", None) or config.vision_feature_layer
    tower = LlavaTower(
        inner,
        model.multi_modal_projector,
        depths=[_depth(index, inner) for index in ([chosen] if isinstance(chosen, int) else chosen)],
        drops_class=getattr(config, "vision_feature_select_strategy", "default") == "default",  # ViP-LLaVA: always
        encoder_id=checkpoint.id,
    )
    return Parts(replace(_vit_spec(checkpoint, vision, inner, seen), projects=True), tower)


_LLAVA_TOWERS: dict[str, type[VitTower]] = {"clip_vision_model": ClipTower, "siglip_vision_model": SiglipTower}


def _depth(index: int, tower: VitTower) -> int:
    """An index into transformers' hidden_states as a depth."""
    depth = index if index >= 0 else tower.depth + 1 + index
    if not 0 <= depth <= tower.depth:
        raise ValueError(f"vision_feature_layer {index} is not one of the tower's {tower.depth} layers")
    return depth


def _vision_half(model_type: str) -> type[nn.Module]:
    """A LLaVA-style architecture without its language model, under the names its checkpoints use."""
    prefix = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision", "vipllava": "VipLlava"}
    base: Any = getattr(transformers, f"{prefix[model_type]}PreTrainedModel")
    modeling = getattr(transformers.models, model_type)
    projector: Any = getattr(getattr(modeling, f"modeling_{model_type}"), f"{prefix[model_type]}MultiModalProjector")

    class VisionHalf(base):  # type: ignore[misc]  # transformers is Any here
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.vision_tower = transformers.AutoModel.from_config(config.vision_config)
            self.multi_modal_projector = projector(config)
            self.post_init()

    return VisionHalf


def _vit_facts(config: Any) -> dict[str, Any]:
    """What a VitTower must know of a vision configuration; NaFlex has patches, no image size."""
    patch = _pair(config.patch_size)
    if config.model_type == "siglip2_vision_model":
        side = int(config.num_patches**0.5)
        native = ImageSize(side * patch.height, side * patch.width)
    else:
        native = _pair(config.image_size)
    has_class_token = not config.model_type.startswith("siglip")
    return {
        "native": native,
        "patch_size": patch,
        "prefix_tokens": int(has_class_token) + getattr(config, "num_register_tokens", 0),
    }


def _pair(size: Any) -> ImageSize:
    return ImageSize(size, size) if isinstance(size, int) else ImageSize(*size)


_RESAMPLED_BY_USE = {"dinov2", "dinov2_with_registers", "dinov3_vit", "siglip2_vision_model"}
"""Families whose positions are made for any grid: native is what their processor makes (DINOv2: 224 of 518)."""


def _vit_spec(checkpoint: Checkpoint, config: Any, tower: VitTower, seen: Seen) -> EncoderSpec:
    """The spec of a vision tower by itself: no joint space."""
    native = seen.size if seen.configured and config.model_type in _RESAMPLED_BY_USE else tower.native
    patch = tower.patch_size
    hidden = int(config.hidden_size)
    return EncoderSpec(
        id=checkpoint.id,
        family="vit",
        image_size=native,
        patch_size=patch,
        prefix_tokens=tower.prefix_tokens,
        hidden_size=hidden,
        embed_dim=None,
        pooled_size=hidden,
        pooling=tower.pooling,
        layers=tower.depth,
        resolutions=Resolutions(multiple=patch, minimum=patch, maximum=largest_size(patch)),
        preprocessing=seen.preprocessing,
    )


def _cnn_spec(checkpoint: Checkpoint, config: Any, seen: Seen, *, family: str, stride: int) -> EncoderSpec:
    """The spec of a CNN whose grid rounds down. ResNet's configuration has no image size."""
    patch = ImageSize(stride, stride)
    configured = getattr(config, "image_size", None)
    sizes = tuple(int(width) for width in config.hidden_sizes)
    return EncoderSpec(
        id=checkpoint.id,
        family=family,
        image_size=seen.size if seen.configured or configured is None else _pair(configured),
        patch_size=patch,
        prefix_tokens=0,
        hidden_size=sizes[-1],
        embed_dim=None,
        pooled_size=sizes[-1],
        pooling="mean",
        layers=len(sizes),
        layer_sizes=sizes,
        resolutions=Resolutions(multiple=ImageSize(1, 1), minimum=patch, maximum=largest_size(patch)),
        preprocessing=seen.preprocessing,
    )


_FAMILIES: dict[str, Callable[[Checkpoint], Parts]] = {
    "clip": _clip,
    "clip_vision_model": _clip_vision,
    "convnext": _convnext,
    "convnextv2": _convnext,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_convnext": _dinov3_convnext,
    "dinov3_vit": _dinov3,
    "llava": _llava,
    "llava_next": _llava,
    "llava_onevision": _llava,
    "resnet": _resnet,
    "siglip": _siglip,
    "siglip2": _siglip,
    "siglip2_vision_model": _siglip_vision,
    "siglip_vision_model": _siglip_vision,
    "vipllava": _llava,
    "vit": _vit,
}
