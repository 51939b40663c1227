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
from encoders.adapters.openclip.hub import require_one_of
from encoders.adapters.openclip.preprocessing import forced
from encoders.adapters.openclip.reference import OpenClipReference
from encoders.adapters.openclip.tokenizer import context_length, tokenizer_of
from encoders.adapters.openclip.weights import creation_options, file_of, load_file
from encoders.adapters.registry import EncoderId
from encoders.adapters.timm.tower import TimmTower
from encoders.contract.reference import Reference
from encoders.runtime.parts import TorchParts
from encoders.runtime.shapes import tried
from encoders.runtime.weights import fitting, seeded


def build(
    encoder_id: EncoderId, *, with_weights: bool, preprocess: str | None = None, quick_gelu: str | None = None
) -> TorchParts:
    """The parts of an open_clip model. Raises EncoderIdError or WeightsError."""
    model = _created(encoder_id, preprocess, quick_gelu, with_weights=with_weights)
    text_cfg = _text_cfg(encoder_id)
    parts = clip_parts(
        model,
        open_clip.get_model_preprocess_cfg(model),
        tokenizer=tokenizer_of(_source(encoder_id), text_cfg, encoder_id) if with_weights else None,
        context_length=context_length(text_cfg),
        encoder_id=str(encoder_id),
        with_weights=with_weights,
    )
    with fitting(str(encoder_id), "its configuration"):
        return parts if isinstance(parts.tower, TimmTower) else tried(parts)  # timm's are measured


def reference(encoder_id: EncoderId, preprocess: str | None = None, quick_gelu: str | None = None) -> Reference:
    """The same checkpoint as open_clip runs it. Raises EncoderIdError or WeightsError."""
    model = _created(encoder_id, preprocess, quick_gelu, with_weights=True)
    tokenizer = tokenizer_of(_source(encoder_id), _text_cfg(encoder_id), encoder_id)
    return OpenClipReference(model, open_clip.get_model_preprocess_cfg(model), tokenizer)


def weights_files(encoder_id: EncoderId) -> list[Path]:
    """The file that an id names, or the one of its tag in the cache of its library."""
    path = file_of(encoder_id)
    if path is None:
        path = Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(encoder_id.name, encoder_id.weights)))
    return [path]


def _source(encoder_id: EncoderId) -> str:
    """The model's name as open_clip takes it."""
    return f"local-dir:{encoder_id.name}" if Path(encoder_id.name).is_dir() else encoder_id.name


def _text_cfg(encoder_id: EncoderId) -> dict[str, Any]:
    """The text half's part of the model's configuration. The model must be known to open_clip."""
    found: dict[str, Any] = open_clip.get_model_config(_source(encoder_id))["text_cfg"]
    return found


def _created(encoder_id: EncoderId, preprocess: str | None, quick_gelu: str | None, *, with_weights: bool) -> Any:
    source = _source(encoder_id)
    with seeded(), fitting(str(encoder_id), encoder_id.weights or source), _unwarned():
        options = creation_options(encoder_id, with_weights=with_weights)
        options |= forced(encoder_id, preprocess, quick_gelu)
        text_cfg = _text_cfg(encoder_id)
        if "hf_model_name" in text_cfg:
            require_one_of(["config.json"], of=text_cfg["hf_model_name"], part="text tower", encoder_id=str(encoder_id))
        # A base model for the text tower would be downloaded, then overwritten: pretrained_text=False.
        model: Any = open_clip.create_model(source, pretrained_text=False, **options)
        if with_weights and (path := file_of(encoder_id)):
            load_file(model, path, encoder_id=str(encoder_id))
    return model


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without two lines that open_clip writes to the root logger.

    One warns of a model without weights: they come later. One tells a failed download, which is raised too.
    """

    def is_another(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(("No pretrained weights loaded", "Failed to download weights"))

    root = logging.getLogger()
    root.addFilter(is_another)
    try:
        yield
    finally:
        root.removeFilter(is_another)
