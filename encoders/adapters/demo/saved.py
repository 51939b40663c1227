"""The files of a trained demo model: `NAME.json`, `NAME.safetensors` and the shared merges.

Knows open_clip's config form; training/demo/saving.py writes them.
"""

import json
from pathlib import Path
from typing import Any

from open_clip.model import CLIP
from safetensors.torch import load_file

NAMES = ("vit", "resnet", "convnext")


def build(model_cfg: dict[str, Any]) -> CLIP:
    """An open_clip model with fresh weights."""
    return CLIP(**model_cfg)


def weights_file(name: str, folder: Path) -> Path:
    """What a model has learnt."""
    return folder / f"{name}.safetensors"


def load(name: str, folder: Path, *, weights: bool = True) -> tuple[CLIP, dict[str, Any]]:
    """The saved model in float32, ready to infer, and its preprocessing; without `weights`, its shape alone."""
    described = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    model = build(described["model_cfg"])
    if weights:
        model.load_state_dict(load_file(weights_file(name, folder)), strict=True)
    return model.float().eval(), described["preprocess_cfg"]
