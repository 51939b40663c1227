"""The backbones of depth estimators: DPT, Depth Anything, ZoeDepth. Their necks and heads are not read."""

from typing import Any

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.families import FAMILIES, build_family, family_parts
from encoders.adapters.hf.part import all_but, part_of
from encoders.contract.errors import EncoderIdError
from encoders.runtime.parts import TorchParts

DEPTH = {
    "depth_anything": "DepthAnythingPreTrainedModel",
    "dpt": "DPTPreTrainedModel",
    "prompt_depth_anything": "PromptDepthAnythingPreTrainedModel",
    "zoedepth": "ZoeDepthPreTrainedModel",
}
"""transformers' class of checkpoints, by model type."""

_BACKBONES = ("beit", "data2vec-vision", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""Whose backbones have all weights of the model by itself. Swin's have norms of their own."""


def build_depth(checkpoint: Checkpoint) -> TorchParts:
    """The backbone of a depth estimator, read as its own Family says; DPT's own transformer where it has no other."""
    config = checkpoint.config()
    own = config.backbone_config
    if own is None or getattr(config, "is_hybrid", False):
        return build_family(checkpoint)
    if own.model_type not in _BACKBONES:
        raise EncoderIdError(
            f"{checkpoint.id} has a backbone of type '{own.model_type}', which is not supported. "
            f"Supported: {', '.join(_BACKBONES)}.",
            model=checkpoint.id,
        )
    family = FAMILIES[own.model_type]
    if hasattr(own, "use_mean_pooling"):
        own.use_mean_pooling = True  # BEiT's backbone has no norm behind its blocks, and so has the model then
    backbone = part_of(DEPTH[config.model_type], "backbone", family.architecture, "backbone_config")
    options: dict[str, Any] = {"add_pooling_layer": False} if family.optional else {}
    model: Any = checkpoint.model(backbone, config, unused=all_but("backbone"), **options)
    return family_parts(checkpoint, family, own, model.backbone)
