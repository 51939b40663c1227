"""`openclip:ARCHITECTURE@WEIGHTS`: open_clip's ResNets and ViTs, and its timm towers (ConvNeXt, SigLIP, EVA, ...).

WEIGHTS is a pretrained tag, a file (safetensors, bin, OpenAI's TorchScript) or `random`. In place of ARCHITECTURE a
folder with open_clip_config.json may stand.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip

from encoders.adapters.openclip.clip import clip_encoder
from encoders.adapters.openclip.tokenizer import tokenizer_of
from encoders.adapters.openclip.weights import creation_options, is_torchscript, torchscript_weights
from encoders.adapters.registry import EncoderId
from encoders.contract.encoder import Placement
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.weights import fitting, load_strictly, seeded


def load(encoder_id: EncoderId, placement: Placement) -> TorchEncoder:
    """An open_clip model. Raises EncoderIdError or WeightsError."""
    name, weights = encoder_id.name, encoder_id.weights
    source = f"local-dir:{name}" if Path(name).is_dir() else name
    with seeded(), fitting(str(encoder_id), weights or source), _unwarned(placement):
        # A base model for the text tower would be downloaded, then overwritten: pretrained_text=False.
        model: Any = open_clip.create_model(source, pretrained_text=False, **creation_options(encoder_id, placement))
        if weights is not None and is_torchscript(weights) and not placement.is_blueprint:
            load_strictly(model, torchscript_weights(weights), encoder_id=str(encoder_id), source=weights)
    return clip_encoder(
        model,
        open_clip.get_model_preprocess_cfg(model),
        tokenizer=None if placement.is_blueprint else tokenizer_of(source, encoder_id),
        encoder_id=str(encoder_id),
        placement=placement,
    )


@contextmanager
def _unwarned(placement: Placement) -> Iterator[None]:
    """A blueprint has no weights, and open_clip warns, on the root logger, of a model that it has not given any."""

    def is_another(record: logging.LogRecord) -> bool:
        return not (placement.is_blueprint and record.msg.startswith("No pretrained weights loaded"))

    root = logging.getLogger()
    root.addFilter(is_another)
    try:
        yield
    finally:
        root.removeFilter(is_another)
