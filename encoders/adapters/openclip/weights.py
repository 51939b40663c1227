"""Finds the weights of an `openclip:` id: a tag, a file, a folder's own or none."""

import difflib
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from encoders.adapters.registry import EncoderId
from encoders.contract.errors import EncoderIdError, WeightsError


def creation_options(encoder_id: EncoderId, *, with_weights: bool) -> dict[str, Any]:
    """The options of open_clip.create_model for the id's weights: a tag, a file, a folder's own, or none."""
    options = _known_weights(encoder_id)
    if not with_weights:
        shape = {name: option for name, option in options.items() if name == "force_quick_gelu"}
        return {**shape, "load_weights": False, "device": "meta"}
    return options


def _known_weights(encoder_id: EncoderId) -> dict[str, Any]:
    name, weights = encoder_id.name, encoder_id.weights
    if Path(name).is_dir():
        if weights is not None:
            raise EncoderIdError(f"'{encoder_id}': a folder brings its own weights; leave '@{weights}' out.")
        return {"require_pretrained": True}
    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else " open_clip.list_models() lists them."
        raise EncoderIdError(f"open_clip has no architecture '{name}'.{hint}", model=str(encoder_id))
    if encoder_id.is_random:
        return {}
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    if weights in tags:
        # The tag knows which activation its weights were trained with; open_clip only warns of a mismatch.
        quick = bool(open_clip.get_pretrained_cfg(name, weights).get("quick_gelu", False))
        return {"pretrained": weights, "require_pretrained": True, "force_quick_gelu": quick}
    if weights is not None and Path(weights).is_file():
        if is_torchscript(weights):  # OpenAI's, all trained with QuickGELU; torch.load refuses TorchScript
            return {"force_quick_gelu": True}
        return {"pretrained": weights, "require_pretrained": True}
    known = f"Tags of {name}: {', '.join(tags) or 'none'}; or a file's path; or 'random' for random weights."
    if weights is None:
        raise EncoderIdError(f"'{encoder_id}' names no weights: write openclip:{name}@WEIGHTS. {known}")
    raise WeightsError(f"'{weights}' is neither a pretrained tag of {name} nor a file. {known}", model=str(encoder_id))


def is_torchscript(path: str) -> bool:
    """Whether a file is a TorchScript archive, the form of OpenAI's own downloads."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def torchscript_weights(path: str) -> dict[str, Tensor]:
    """The weights in OpenAI's archive, in float32; its forward is never run, and TorchScript holds no Python."""
    weights: dict[str, Tensor] = dict(torch.jit.load(path, map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
    for fact in ("input_resolution", "context_length", "vocab_size"):
        weights.pop(fact, None)
    return {name: value.float() for name, value in weights.items()}
