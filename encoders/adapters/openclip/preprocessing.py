"""How the weights of an `openclip:` id were trained: pixels and activation, as open_clip's pretrained tags say.

A tag and a folder say it themselves. A file says nothing: what all pretrained tags of its architecture agree on is
taken. Where they disagree, the log names the choices, and `?preprocess=TAG` and `?quick_gelu=true` choose.
"""

import logging
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from encoders.adapters.openclip.weights import is_openai
from encoders.adapters.registry import EncoderId
from encoders.contract.errors import EncoderIdError

_log = logging.getLogger(__name__)


def forced(encoder_id: EncoderId, preprocess: str | None, quick_gelu: str | None) -> dict[str, Any]:
    """The options of open_clip.create_model that say how the weights were trained.

    preprocess: a pretrained tag of the architecture, whose pixels the weights want. quick_gelu: true or false. Raises
    EncoderIdError for other values of them.
    """
    if Path(encoder_id.name).is_dir():
        if preprocess or quick_gelu:
            raise EncoderIdError(
                f"'{encoder_id}': a folder's open_clip_config.json says its preprocessing and activation; "
                "change them there.",
                model=str(encoder_id),
            )
        return {}
    tags = _tags(encoder_id.name)
    if preprocess is not None and preprocess not in tags:
        raise EncoderIdError(
            f"'{encoder_id}': '{preprocess}' is no pretrained tag of {encoder_id.name}. "
            f"Tags: {', '.join(tags) or 'none'}.",
            model=str(encoder_id),
        )
    if quick_gelu not in (None, "true", "false"):
        raise EncoderIdError(f"'{encoder_id}': quick_gelu is true or false.", model=str(encoder_id))
    own_tag = encoder_id.weights if encoder_id.weights in tags else None
    pixels = tags[preprocess] if preprocess else tags[own_tag] if own_tag else _agreed_pixels(encoder_id, tags)
    if quick_gelu is not None:
        quick = quick_gelu == "true"
    else:
        quick = bool(tags[own_tag].get("quick_gelu")) if own_tag else _agreed_quick_gelu(encoder_id, tags)
    configured = bool(open_clip.get_model_config(encoder_id.name).get("quick_gelu", False))
    if configured and not quick:
        if quick_gelu is not None:
            raise EncoderIdError(
                f"'{encoder_id}': {encoder_id.name} has QuickGELU; name the architecture without it.",
                model=str(encoder_id),
            )
        quick = True
    return {"force_preprocess_cfg": _pixels(pixels), "force_quick_gelu": quick}


def _tags(architecture: str) -> dict[str, dict[str, Any]]:
    return {
        tag: open_clip.get_pretrained_cfg(architecture, tag)
        for tag in open_clip.list_pretrained_tags_by_model(architecture)
    }


def _pixels(cfg: dict[str, Any]) -> dict[str, Any]:
    """Mean, std, interpolation, resize mode and fill of a pretrained configuration, with open_clip's defaults."""
    merged: dict[str, Any] = merge_preprocess_dict(asdict(PreprocessCfg()), cfg)
    return {name: merged[name] for name in ("mean", "std", "interpolation", "resize_mode", "fill_color")}


def _agreed_pixels(encoder_id: EncoderId, tags: dict[str, dict[str, Any]]) -> dict[str, Any]:
    choices: dict[str, list[str]] = defaultdict(list)
    for tag, cfg in tags.items():
        choices[str(_pixels(cfg))].append(tag)
    if len(choices) == 1:
        return next(iter(tags.values()))
    if choices and not encoder_id.is_random:
        described = "; ".join(f"{_described(tags[named[0]])} ({', '.join(named)})" for named in choices.values())
        _log.warning(
            "%s does not say how its pixels were normalised and resized, and the pretrained tags of %s disagree: %s. "
            "OpenAI's is taken. Append ?preprocess=TAG to the id to choose.",
            encoder_id,
            encoder_id.name,
            described,
        )
    return {}


def _described(cfg: dict[str, Any]) -> str:
    pixels = _pixels(cfg)
    mean, std = (tuple(round(value, 3) for value in pixels[name]) for name in ("mean", "std"))
    return f"mean {mean}, std {std}, {pixels['interpolation']}, {pixels['resize_mode']}"


def _agreed_quick_gelu(encoder_id: EncoderId, tags: dict[str, dict[str, Any]]) -> bool:
    """QuickGELU where all tags have it, or the file is OpenAI's own; else as the architecture says."""
    found = {bool(cfg.get("quick_gelu", False)) for cfg in tags.values()}
    configured = bool(open_clip.get_model_config(encoder_id.name).get("quick_gelu", False))
    if encoder_id.is_random:
        return configured or found == {True}
    if is_openai(encoder_id):
        return True
    if len(found) == 2 and not configured:
        _log.warning(
            "%s does not say which activation it was trained with, and the pretrained tags of %s disagree: GELU is "
            "taken. Append ?quick_gelu=true to the id if its weights are of OpenAI's kind.",
            encoder_id,
            encoder_id.name,
        )
    if found == {True} and not configured:
        _log.warning(
            "%s: QuickGELU is taken, as in all pretrained tags of %s. Append ?quick_gelu=false to the id if the file "
            "was trained without.",
            encoder_id,
            encoder_id.name,
        )
    return configured or found == {True}
