"""The vision architectures of transformers that are read by description: one Family a model type."""

from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from encoders.adapters.hf.checkpoint import CLASSIFIER, Checkpoint
from encoders.adapters.hf.family import Family, FamilyTower, patches
from encoders.contract.spec import EncoderSpec
from encoders.runtime.parts import TorchParts


def _unmasked(model: Any, pixels: Tensor, native: bool) -> dict[str, Any]:
    """ViT-MAE's arguments: patches are shuffled by rising noise, so they stay in order; none is dropped."""
    patch = model.config.patch_size
    count = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
    noise = torch.arange(count, dtype=torch.float32, device=pixels.device).expand(len(pixels), count)
    return {"pixel_values": pixels, "noise": noise, "interpolate_pos_encoding": not native}


def _mask_nothing(config: Any) -> None:
    config.mask_ratio = 0.0


def _pooler_size(model: Any) -> int | None:
    return None if model.pooler is None else int(model.pooler.dense.out_features)


FAMILIES: dict[str, Family] = {
    "deit": Family(
        "DeiTModel",
        "DeiTImageProcessor",
        geometry=patches(prefix=lambda config: 2),
        pooled_size=_pooler_size,
        unused=rf"{CLASSIFIER}|(cls|distillation)_classifier\.|.*mask_token",
        optional=r"pooler\.",
    ),
    "ijepa": Family(
        "IJepaModel",
        "ViTImageProcessor",
        geometry=patches(prefix=lambda config: 0),
        pooling=lambda model: "mean",
        unused=CLASSIFIER,
    ),
    "vit_mae": Family(
        "ViTMAEModel",
        "ViTImageProcessor",
        arguments=_unmasked,
        unused=rf"{CLASSIFIER}|decoder\.",
        prepare=_mask_nothing,
    ),
}


def build_family(checkpoint: Checkpoint) -> TorchParts:
    """A vision tower by itself, read as its Family says."""
    config = checkpoint.config()
    family = FAMILIES[config.model_type]
    family.prepare(config)
    architecture = getattr(transformers, family.architecture)
    model = checkpoint.model(architecture, config, unused=family.unused, optional=family.optional)
    return family_parts(checkpoint, family, config, model)


def family_parts(checkpoint: Checkpoint, family: Family, config: Any, model: Any) -> TorchParts:
    """The parts of a vision model, whose own configuration is `config`."""
    geometry = family.geometry(config)
    seen = checkpoint.seen(family.processor)
    if seen.configured and not family.bound:
        geometry = replace(geometry, native=seen.size)
    tower = FamilyTower(model, family, geometry)
    spec = EncoderSpec(
        id=checkpoint.id,
        family=family.family,
        image_size=geometry.native,
        patch_size=geometry.patch_size,
        prefix_tokens=geometry.prefix_tokens,
        hidden_size=geometry.hidden_size,
        embed_dim=None,
        pooled_size=family.pooled_size(model) or geometry.hidden_size,
        pooling=tower.pooling,
        layers=tower.depth,
        layer_sizes=geometry.layer_sizes,
        grid_offset=geometry.grid_offset,
        resolutions=geometry.resolutions,
        preprocessing=seen.preprocessing,
    )
    return TorchParts(spec, tower)
