"""`hf:NAME[@REVISION]`, `hf:/path/to/folder`, `hf:...@random`: checkpoints in transformers' format.

A folder is read without network. No code from a checkpoint is run. `@random` builds the folder's configuration with
seeded random weights; its text half is left out if there is no tokenizer.

Without preprocessor_config.json (or processor_config.json) the defaults of the family's processor class apply, at the
image size of config.json: CLIP's, SigLIP's, BiT's for DINOv2, DINOv3ViT's, ConvNeXt's (for ResNet too), ViT's, LLaVA's.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from encoders.adapters.hf.checkpoint import PROCESSORS, Checkpoint, quiet
from encoders.adapters.hf.clip import build_clip_vision
from encoders.adapters.hf.cnn import build_convnext, build_dinov3_convnext, build_resnet
from encoders.adapters.hf.contrastive import CONTRASTIVE, build_blip, build_contrastive
from encoders.adapters.hf.depth import DEPTH, build_depth
from encoders.adapters.hf.families import FAMILIES, build_family
from encoders.adapters.hf.llava import build_llava
from encoders.adapters.hf.reference import HfReference, Noting
from encoders.adapters.hf.siglip import build_siglip, build_siglip_vision
from encoders.adapters.hf.vlms import VLMS, build_vlm
from encoders.adapters.registry import EncoderId
from encoders.contract.errors import EncoderIdError
from encoders.contract.reference import Reference
from encoders.runtime.parts import TorchParts
from encoders.runtime.shapes import tried, tried_projection
from encoders.runtime.weights import fitting


def build(encoder_id: EncoderId, *, with_weights: bool) -> TorchParts:
    """The parts of a transformers checkpoint.

    Raises EncoderIdError for a model type that is not supported; WeightsError for a checkpoint that cannot be had or
    does not fit.
    """
    checkpoint = Checkpoint.of(encoder_id, with_weights=with_weights)
    with fitting(checkpoint.id, checkpoint.name), quiet():
        model_type = checkpoint.model_type()
        if model_type not in _FAMILIES:
            raise EncoderIdError(
                f"{checkpoint.id} is of type '{model_type}', which is not supported. "
                f"Supported: {', '.join(sorted(_FAMILIES))}.",
                model=checkpoint.id,
                supported=sorted(_FAMILIES),
            )
        if _FAMILIES[model_type] in (build_llava, build_vlm):  # of these the language model alone may be quantised
            return tried_projection(_FAMILIES[model_type](checkpoint))
        checkpoint.refuse_quantised()
        return tried(_FAMILIES[model_type](checkpoint))


def reference(encoder_id: EncoderId) -> Reference:
    """The same checkpoint as transformers runs it.

    Raises EncoderIdError for random weights and for a vision-language model, WeightsError for a checkpoint that cannot
    be had or does not fit.
    """
    if encoder_id.is_random:
        raise EncoderIdError(f"'{encoder_id}': random weights have no reference.", model=str(encoder_id))
    checkpoint = Checkpoint.of(encoder_id, with_weights=True)
    with fitting(checkpoint.id, checkpoint.name), quiet():
        if _FAMILIES.get(checkpoint.model_type()) in (build_llava, build_vlm):
            raise EncoderIdError(
                f"'{encoder_id}': a vision-language model has no reference here: transformers would load its language "
                "model too.",
                model=str(encoder_id),
            )
        if checkpoint.has(*PROCESSORS):
            return HfReference(checkpoint)
        noting = Noting(checkpoint.id, checkpoint.name, random=False, with_weights=False, options=checkpoint.options)
        with torch.device("meta"):
            spec = _FAMILIES[checkpoint.model_type()](noting).spec
        return HfReference(checkpoint, noting.default_for(spec))


def weights_files(encoder_id: EncoderId) -> list[Path]:
    """The files in the checkpoint's folder, or in the hub's cache."""
    return Checkpoint.of(encoder_id, with_weights=True).weights_files()


_FAMILIES: dict[str, Callable[[Checkpoint], TorchParts]] = {
    "blip": build_blip,
    "clip_vision_model": build_clip_vision,
    "convnext": build_convnext,
    "convnextv2": build_convnext,
    "dinov3_convnext": build_dinov3_convnext,
    "llava": build_llava,
    "llava_next": build_llava,
    "llava_onevision": build_llava,
    "resnet": build_resnet,
    "siglip": build_siglip,
    "siglip2": build_siglip,
    "siglip2_vision_model": build_siglip_vision,
    "siglip_vision_model": build_siglip_vision,
    "vipllava": build_llava,
    **dict.fromkeys(CONTRASTIVE, build_contrastive),
    **dict.fromkeys(FAMILIES, build_family),
    **dict.fromkeys(DEPTH, build_depth),
    **dict.fromkeys(VLMS, build_vlm),
}
