"""An open_clip model in memory as the parts of an encoder. Knows towers; knows no files and no tags."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from encoders.adapters.openclip.resnet import ResNetTower, resnet_spec
from encoders.adapters.openclip.text import OpenClipText
from encoders.adapters.openclip.vit import VitTower, vit_spec
from encoders.adapters.timm.spec import trunk_spec
from encoders.adapters.timm.tower import TimmTower
from encoders.contract.errors import EncoderIdError
from encoders.contract.spec import EncoderSpec, Preprocessing, Scoring
from encoders.contract.values import ImageSize
from encoders.runtime.parts import TorchParts
from encoders.runtime.tower import TextTower, Tower
from encoders.runtime.weights import number


def clip_parts(
    model: Any,
    preprocess_cfg: dict[str, Any],
    *,
    tokenizer: Callable[[list[str]], Tensor] | None,
    encoder_id: str,
    context_length: int | None = None,
    with_weights: bool = True,
) -> TorchParts:
    """The parts of an open_clip model with its preprocessing config. They take `visual` out of the model.

    tokenizer: without one there is no text half. A blueprint (not with_weights) has its text half all the same.
    context_length: of the tokenizer; None for the length that the model names.
    """
    visual = model.visual
    tower, spec = _tower_and_spec(visual, preprocess_cfg, encoder_id=encoder_id)
    text: TextTower | None = None
    more: dict[str, Any] = {}
    with torch.inference_mode():
        if tokenizer is not None or not with_weights:
            bias = getattr(model, "logit_bias", None)
            more["scoring"] = Scoring(
                activation="softmax" if bias is None else "sigmoid",  # only models trained with SigLIP's loss have one
                logit_scale=number(model.logit_scale.exp()),
                logit_bias=0.0 if bias is None else number(bias),
            )
            more["context_length"] = int(model.context_length if context_length is None else context_length)
            del model.visual
            text = OpenClipText(model, tokenizer)
    return TorchParts(replace(spec, **more), tower, text)


def _tower_and_spec(visual: Any, preprocess_cfg: dict[str, Any], *, encoder_id: str) -> tuple[Tower, EncoderSpec]:
    preprocessing = Preprocessing(
        mean=tuple(preprocess_cfg["mean"]),
        std=tuple(preprocess_cfg["std"]),
        interpolation=preprocess_cfg["interpolation"],
        resize=preprocess_cfg["resize_mode"],
        fill=preprocess_cfg.get("fill_color", 0),
    )
    if isinstance(visual, VisionTransformer):
        return VitTower(visual), vit_spec(visual, preprocessing, encoder_id)
    if isinstance(visual, ModifiedResNet):
        return ResNetTower(visual), resnet_spec(visual, preprocessing, encoder_id)
    if isinstance(visual, TimmModel):
        tower = TimmTower(visual.trunk, visual.head)
        with torch.inference_mode():
            embed_dim = visual.eval()(torch.zeros(1, 3, *visual.image_size)).shape[1]
        spec = trunk_spec(
            tower, encoder_id=encoder_id, preprocessing=preprocessing, image_size=ImageSize(*visual.image_size)
        )
        return tower, replace(
            spec,
            embed_dim=embed_dim,
            pooled_size=embed_dim,
            projected_size=None
            if spec.pooling == "attention"
            else embed_dim,  # an attention pool has no projection a token could take
            dense=True,
        )
    raise EncoderIdError(f"{encoder_id}: the tower {type(visual).__name__} is not supported.", model=encoder_id)
