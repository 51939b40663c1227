"""Writes a trained demo model: its configuration in open_clip's form, and its weights in fp16."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from encoders.adapters.demo.vocabulary import CONTEXT_LENGTH, tokenizer

IMAGE_SIZE = 96
_VISION: dict[str, dict[str, Any]] = {
    "vit": {
        "image_size": IMAGE_SIZE,
        "patch_size": 16,
        "width": 128,
        "layers": 5,
        "head_width": 32,
        "pool_type": "avg",
    },
    "resnet": {"image_size": IMAGE_SIZE, "layers": [1, 2, 2, 1], "width": 16, "head_width": 64},
    "convnext": {
        "image_size": IMAGE_SIZE,
        "timm_model_name": "test_convnext2",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
}
PREPROCESSING: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def config(name: str, *, embed_dim: int) -> dict[str, Any]:
    """The model's configuration in the form of an `open_clip_config.json`."""
    text = {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": tokenizer().vocab_size,
        "width": 128,
        "heads": 4,
        "layers": 2,
    }
    return {
        "model_cfg": {"embed_dim": embed_dim, "vision_cfg": _VISION[name], "text_cfg": text},
        "preprocess_cfg": PREPROCESSING,
    }


def save(model: nn.Module, name: str, folder: Path, *, embed_dim: int) -> Path:
    """Writes the configuration and the fp16 weights; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, described = folder / f"{name}.safetensors", folder / f"{name}.json"
    half = {key: _half(value) for key, value in model.state_dict().items()}
    save_file(half, f"{weights}.partial", metadata={"format": "pt"})
    os.chmod(f"{weights}.partial", 0o644)  # safetensors writes 0600
    os.replace(f"{weights}.partial", weights)
    partial = described.with_suffix(".partial")
    partial.write_text(json.dumps(config(name, embed_dim=embed_dim), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, described)
    return weights


def _half(value: Tensor) -> Tensor:
    value = value.detach().to("cpu", memory_format=torch.contiguous_format)
    return (value.half() if value.is_floating_point() else value).contiguous().clone()
