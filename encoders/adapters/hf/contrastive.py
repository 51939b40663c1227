"""The image-and-text models of transformers that are read by description: CLIP and its kin, AIMv2, ALIGN, BLIP."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import torch
import transformers
from torch import Tensor

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.clip import clip_parts
from encoders.adapters.hf.families import FAMILIES, family_parts
from encoders.adapters.hf.family import Family
from encoders.adapters.hf.part import all_but, part_of
from encoders.adapters.hf.text import TextFamily, causal, first, with_text
from encoders.contract.spec import Scoring
from encoders.runtime.padding import attention_bias
from encoders.runtime.parts import TorchParts
from encoders.runtime.weights import number


def _padding(is_text: Tensor, dtype: torch.dtype) -> Tensor:
    return attention_bias(is_text, dtype=dtype)


@dataclass(frozen=True)
class Contrastive:
    """How a model with an image tower and a text tower in one space is read; its scores go through a softmax.

    architecture: transformers' class of both towers.
    text: how the text tower is read.
    vision: how the image tower is read; None if it is of CLIP's make. processor: its image processor's class then.
    visual_projection, text_model, text_projection: where they are in the model; None if pooled needs no projection.
    logit_scale: what cosines are multiplied by, of a model.
    unused: a pattern of keys in checkpoints that belong to parts not loaded.
    """

    architecture: str
    text: TextFamily = field(default_factory=TextFamily)
    vision: Family | None = None
    processor: str = "CLIPImageProcessor"
    visual_projection: str | None = "visual_projection"
    text_model: str = "text_model"
    text_projection: str = "text_projection"
    logit_scale: Callable[[Any], float] = lambda model: number(model.logit_scale.exp())
    unused: str = ""


_BERT = TextFamily(pool=first, mask=_padding)

CONTRASTIVE: dict[str, Contrastive] = {
    "aimv2": Contrastive(
        "Aimv2Model",
        TextFamily(mask=causal),
        FAMILIES["aimv2_vision_model"],
        logit_scale=lambda model: number(model.logit_scale.clamp(0, model.max_log_logit_scale).exp()),
    ),
    "align": Contrastive(
        "AlignModel",
        replace(_BERT, context=64),  # of AlignProcessor
        FAMILIES["align_vision_model"],
        visual_projection=None,
        logit_scale=lambda model: number(1 / model.temperature),
    ),
    "altclip": Contrastive("AltCLIPModel", replace(_BERT, context=77, first_position=2)),
    "chinese_clip": Contrastive("ChineseCLIPModel", replace(_BERT, context=52), processor="ChineseCLIPImageProcessor"),
    "clip": Contrastive("CLIPModel"),
    "clipseg": Contrastive("CLIPSegModel", processor="ViTImageProcessor", unused=r"decoder\."),
    "metaclip_2": Contrastive("MetaClip2Model"),
}
"""By model type."""

_BLIP = Contrastive(
    "BlipModel", TextFamily(mask=_padding, context=35), replace(FAMILIES["blip_vision_model"], family="vit")
)
_BLIP_RETRIEVAL = Contrastive(
    "BlipForImageTextRetrieval",
    replace(_BERT, context=35),
    replace(FAMILIES["blip_vision_model"], pooler=False),  # which norms twice
    visual_projection="vision_proj",
    text_model="text_encoder",
    text_projection="text_proj",
    logit_scale=lambda model: 1.0,  # checkpoints have lost it: the model's scores are cosines
)


def build_contrastive(checkpoint: Checkpoint) -> TorchParts:
    """A vision tower, a text tower and their projections."""
    config = checkpoint.config()
    return _both_towers(checkpoint, config, CONTRASTIVE[config.model_type])


def build_blip(checkpoint: Checkpoint) -> TorchParts:
    """BLIP: both towers where the checkpoint has a joint space, else the vision tower."""
    config = checkpoint.config()
    architectures = config.architectures or ["BlipModel"]
    if "BlipForImageTextRetrieval" in architectures:
        return _both_towers(checkpoint, config, _BLIP_RETRIEVAL)
    if "BlipModel" in architectures:
        return _both_towers(checkpoint, config, _BLIP)
    family = FAMILIES["blip_vision_model"]
    vision = part_of("BlipPreTrainedModel", "vision_model", family.architecture, "vision_config")
    model = checkpoint.model(vision, config, unused=all_but("vision_model"))
    return family_parts(checkpoint, family, config.vision_config, model.vision_model)


def _both_towers(checkpoint: Checkpoint, config: Any, read: Contrastive) -> TorchParts:
    model = checkpoint.model(getattr(transformers, read.architecture), config, unused=read.unused)
    vision, projection = model.vision_model, getattr(model, read.visual_projection) if read.visual_projection else None
    if read.vision is None:
        parts = clip_parts(checkpoint, config.vision_config, vision, projection, read.processor)
    else:
        parts = family_parts(checkpoint, read.vision, config.vision_config, vision, projection)
        width = projection.out_features if projection else parts.spec.hidden_size
        parts = replace(parts, spec=replace(parts.spec, embed_dim=width, pooled_size=width))
    text_model, text_projection = attrgetter(read.text_model, read.text_projection)(model)
    scoring = Scoring("softmax", logit_scale=read.logit_scale(model))
    return with_text(checkpoint, parts, config.text_config, text_model, text_projection, scoring, read.text)
