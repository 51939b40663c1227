"""`openclip:ARCHITECTURE@WEIGHTS`: open_clip's ResNets and ViTs, and its timm towers (ConvNeXt, SigLIP, EVA, ...).

WEIGHTS is a pretrained tag, a file (safetensors, bin, OpenAI's TorchScript) or `random`. In place of ARCHITECTURE a
folder with open_clip_config.json may stand.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import open_clip

from encoders.adapters.openclip.clip import clip_parts
from encoders.adapters.openclip.hub import require_one_of
from encoders.adapters.openclip.tokenizer import context_length, tokenizer_of
from encoders.adapters.openclip.weights import creation_options, is_torchscript, torchscript_weights
from encoders.adapters.registry import EncoderId
from encoders.runtime.parts import TorchParts
from encoders.runtime.weights import fitting, load_strictly, seeded


def build(encoder_id: EncoderId, *, with_weights: bool) -> TorchParts:
    """The parts of an open_clip model. Raises EncoderIdError or WeightsError."""
    name, weights = encoder_id.name, encoder_id.weights
    source = f"local-dir:{name}" if Path(name).is_dir() else name
    with seeded(), fitting(str(encoder_id), weights or source), nullcontext() if with_weights else _unwarned():
        options = creation_options(encoder_id, with_weights=with_weights)
        text_cfg = open_clip.get_model_config(source)["text_cfg"]
        if "hf_model_name" in text_cfg:
            require_one_of(["config.json"], of=text_cfg["hf_model_name"], part="text tower", encoder_id=str(encoder_id))
        # A base model for the text tower would be downloaded, then overwritten: pretrained_text=False.
        model: Any = open_clip.create_model(source, pretrained_text=False, **options)
        if weights is not None and with_weights and is_torchscript(weights):
            load_strictly(model, torchscript_weights(weights), encoder_id=str(encoder_id), source=weights)
    return clip_parts(
        model,
        open_clip.get_model_preprocess_cfg(model),
        tokenizer=tokenizer_of(source, text_cfg, encoder_id) if with_weights else None,
        context_length=context_length(text_cfg),
        encoder_id=str(encoder_id),
        with_weights=with_weights,
    )


@contextmanager
def _unwarned() -> Iterator[None]:
    """open_clip warns, on the root logger, of a model without weights; here that is a blueprint, and meant so."""

    def is_another(record: logging.LogRecord) -> bool:
        return not record.msg.startswith("No pretrained weights loaded")

    root = logging.getLogger()
    root.addFilter(is_another)
    try:
        yield
    finally:
        root.removeFilter(is_another)
