"""`openclip:ARCHITECTURE@WEIGHTS`: open_clip's ResNets and ViTs, and its timm towers (ConvNeXt, SigLIP, EVA, ...).

WEIGHTS is a pretrained tag, a file (safetensors, bin, OpenAI's TorchScript) or `random`. In place of ARCHITECTURE a
folder with open_clip_config.json may stand. Of a file, `?preprocess=TAG` says whose pixels it wants, `?quick_gelu=true`
which activation (preprocessing.py).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip

from encoders.adapters.openclip.clip import clip_parts
from encoders.adapters.openclip.preprocessing import forced
from encoders.adapters.openclip.tokenizer import tokenizer_of
from encoders.adapters.openclip.weights import creation_options, file_of, load_file
from encoders.adapters.registry import EncoderId
from encoders.runtime.parts import TorchParts
from encoders.runtime.weights import fitting, seeded


def build(
    encoder_id: EncoderId, *, with_weights: bool, preprocess: str | None = None, quick_gelu: str | None = None
) -> TorchParts:
    """The parts of an open_clip model. Raises EncoderIdError or WeightsError."""
    name, weights = encoder_id.name, encoder_id.weights
    source = f"local-dir:{name}" if Path(name).is_dir() else name
    with seeded(), fitting(str(encoder_id), weights or source), _unwarned():
        options = creation_options(encoder_id, with_weights=with_weights)
        options |= forced(encoder_id, preprocess, quick_gelu)
        # A base model for the text tower would be downloaded, then overwritten: pretrained_text=False.
        model: Any = open_clip.create_model(source, pretrained_text=False, **options)
        if with_weights and (path := file_of(encoder_id)):
            load_file(model, path, encoder_id=str(encoder_id))
    return clip_parts(
        model,
        open_clip.get_model_preprocess_cfg(model),
        tokenizer=tokenizer_of(source, encoder_id) if with_weights else None,
        encoder_id=str(encoder_id),
        with_weights=with_weights,
    )


@contextmanager
def _unwarned() -> Iterator[None]:
    """open_clip warns, on the root logger, of a model without weights; here that is meant so: they come later."""

    def is_another(record: logging.LogRecord) -> bool:
        return not record.msg.startswith("No pretrained weights loaded")

    root = logging.getLogger()
    root.addFilter(is_another)
    try:
        yield
    finally:
        root.removeFilter(is_another)
