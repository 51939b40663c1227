"""The specs of vision towers by themselves: vision transformers and CNNs."""

from typing import Any

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.config import pair
from encoders.adapters.hf.preprocessing import Seen
from encoders.adapters.hf.vit import VitTower
from encoders.contract.spec import EncoderSpec, Resolutions
from encoders.contract.values import ImageSize
from encoders.runtime.tower import largest_size

_RESAMPLED_BY_USE = {"clipseg_vision_model", "siglip2_vision_model"}
"""Families whose positions are made for any grid: native is what their processor makes."""


def vit_spec(checkpoint: Checkpoint, config: Any, tower: VitTower, seen: Seen) -> EncoderSpec:
    """The spec of a vision tower by itself: no joint space."""
    native = seen.size if seen.configured and config.model_type in _RESAMPLED_BY_USE else tower.native
    patch = tower.patch_size
    hidden = int(config.hidden_size)
    return EncoderSpec(
        id=checkpoint.id,
        family="vit",
        image_size=native,
        patch_size=patch,
        prefix_tokens=tower.prefix_tokens,
        hidden_size=hidden,
        embed_dim=None,
        pooled_size=hidden,
        pooling=tower.pooling,
        layers=tower.depth,
        resolutions=Resolutions(multiple=patch, minimum=patch, maximum=largest_size(patch)),
        preprocessing=seen.preprocessing,
    )


def cnn_spec(checkpoint: Checkpoint, config: Any, seen: Seen, *, family: str, stride: int) -> EncoderSpec:
    """The spec of a CNN whose grid rounds down. ResNet's configuration has no image size."""
    patch = ImageSize(stride, stride)
    configured = getattr(config, "image_size", None)
    sizes = tuple(int(width) for width in config.hidden_sizes)
    return EncoderSpec(
        id=checkpoint.id,
        family=family,
        image_size=seen.size if seen.configured or configured is None else pair(configured),
        patch_size=patch,
        prefix_tokens=0,
        hidden_size=sizes[-1],
        embed_dim=None,
        pooled_size=sizes[-1],
        pooling="mean",
        layers=len(sizes),
        layer_sizes=sizes,
        resolutions=Resolutions(multiple=ImageSize(1, 1), minimum=patch, maximum=largest_size(patch)),
        preprocessing=seen.preprocessing,
    )
