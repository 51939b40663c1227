"""Finds the weights of an `openclip:` id, a tag, a file, a folder's own or none, and puts a file's into the model."""

import difflib
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from torch import Tensor

from encoders.adapters.hints import hint_for_folder, hint_for_name
from encoders.adapters.registry import EncoderId
from encoders.contract.errors import EncoderIdError, WeightsError
from encoders.runtime.weights import load_strictly
from encoders.runtime.weights_file import is_torchscript, read_weights, refuse_adapter


def creation_options(encoder_id: EncoderId, *, with_weights: bool) -> dict[str, Any]:
    """The options of open_clip.create_model for the id's weights: a tag's, or none where a file or nothing follows.

    Raises EncoderIdError for a name that open_clip does not know, WeightsError for weights that are not there.
    """
    options = _known_weights(encoder_id)
    return options if with_weights else {"load_weights": False, "device": "meta"}


def file_of(encoder_id: EncoderId) -> Path | None:
    """The file of weights that the id names, or that its folder holds; None for a tag and for random weights."""
    name, weights = encoder_id.name, encoder_id.weights
    if Path(name).is_dir():
        return _file_in(Path(name), encoder_id)
    if weights is None or encoder_id.is_random or weights in open_clip.list_pretrained_tags_by_model(name):
        return None
    return Path(weights)


def is_openai(encoder_id: EncoderId) -> bool:
    """Whether the id names one of OpenAI's own files: a TorchScript archive. All were trained with QuickGELU."""
    path = file_of(encoder_id)
    return path is not None and path.is_file() and is_torchscript(path)


def load_file(model: Any, path: Path, *, encoder_id: str) -> None:
    """Puts the weights in a file into the model, converted and resized as open_clip.load_checkpoint does.

    Raises WeightsError that names what does not fit.
    """
    if path.suffix == ".npz":  # big_vision's, for which open_clip has a reader of its own
        open_clip.load_checkpoint(model, str(path))
        return
    own = model.state_dict()
    if path.is_file() and is_torchscript(path):
        weights = torchscript_weights(str(path))
    else:
        weights = convert_state_dict(model, read_weights(path, encoder_id=encoder_id, own=own.keys()))
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    for name in ("logit_scale", "logit_bias"):  # saved as a scalar or as a vector of one
        if name in weights and name in own and weights[name].numel() == own[name].numel():
            weights[name] = weights[name].reshape(own[name].shape)
    for name in [name for name in weights if name.endswith(".position_ids") and name not in own]:
        del weights[name]  # written by transformers before 4.31, and the same in every model
    resize_pos_embed(weights, model)
    resize_text_pos_embed(weights, model)
    load_strictly(model, weights, encoder_id=encoder_id, source=str(path))


def _file_in(folder: Path, encoder_id: EncoderId) -> Path:
    """The weights that open_clip takes from a folder: open_clip's names first, then others, safetensors first."""
    files = [file for suffix in ("*.safetensors", "*.bin", "*.pth", "*.pt") for file in sorted(folder.glob(suffix))]
    if not files:
        raise WeightsError(
            f"{folder} has no file of weights (open_clip_model.safetensors, ...) for {encoder_id}.",
            model=str(encoder_id),
        )
    return next((file for file in files if file.name.startswith("open_clip_")), files[0])


def _known_weights(encoder_id: EncoderId) -> dict[str, Any]:
    name, weights = encoder_id.name, encoder_id.weights
    if Path(name).is_dir():
        if weights is not None:
            raise EncoderIdError(f"'{encoder_id}': a folder brings its own weights; leave '@{weights}' out.")
        refuse_adapter(Path(name), encoder_id=str(encoder_id))
        if not Path(name, "open_clip_config.json").is_file():
            raise EncoderIdError(
                f"{name} has no open_clip_config.json.{hint_for_folder(Path(name))}", model=str(encoder_id)
            )
        return {"load_weights": False}
    if name not in open_clip.list_models():
        raise EncoderIdError(f"open_clip has no architecture '{name}'.{_meant(name)}", model=str(encoder_id))
    if encoder_id.is_random:
        return {}
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    if weights in tags:
        return {"pretrained": weights, "require_pretrained": True}
    if weights is not None and Path(weights).exists():
        return {}
    known = f"Tags of {name}: {', '.join(tags) or 'none'}; or a file's path; or 'random' for random weights."
    if weights is None:
        raise EncoderIdError(f"'{encoder_id}' names no weights: write openclip:{name}@WEIGHTS. {known}")
    raise WeightsError(f"'{weights}' is neither a pretrained tag of {name} nor a file. {known}", model=str(encoder_id))


def _meant(name: str) -> str:
    """The id that a name open_clip does not know may stand for, as a sentence."""
    repository = name.removeprefix("hf-hub:").removeprefix("hf_hub:").strip("/")
    for architecture, tag in open_clip.list_pretrained():
        if (
            repository != name
            and open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "").strip("/") == repository
        ):
            return f" Write openclip:{architecture}@{tag}"
    if hint := hint_for_name(name):
        return hint
    if close := difflib.get_close_matches(name, open_clip.list_models(), n=3):
        return f" Did you mean {', '.join(close)}?"
    if name.startswith(("/", "./", "../", "~")):
        return " It is no folder either."
    return " `visiontower models --scheme openclip` lists them."


def torchscript_weights(path: str) -> dict[str, Tensor]:
    """The weights in OpenAI's archive, in float32; its forward is never run, and TorchScript holds no Python."""
    weights: dict[str, Tensor] = dict(torch.jit.load(path, map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
    for fact in ("input_resolution", "context_length", "vocab_size"):
        weights.pop(fact, None)
    return {name: value.float() for name, value in weights.items()}
