"""The spec of a timm trunk: what timm declares, and two things that it does not.

Whether a trunk runs at another size, and how its feature map rounds, is tried out on a small input at load.
"""

from typing import Any

import torch
from timm.data import resolve_data_config
from torch import nn

from encoders.adapters.timm.tower import TimmTower
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions
from encoders.contract.values import ImageSize
from encoders.runtime.tower import largest_size


def native_size(trunk: Any) -> ImageSize:
    """The size a trunk was made for."""
    embed = getattr(trunk, "patch_embed", None)
    found = getattr(embed, "img_size", None) or trunk.pretrained_cfg["input_size"][1:]
    return ImageSize(*found)


def trunk_spec(
    tower: TimmTower, *, encoder_id: str, preprocessing: Preprocessing, image_size: ImageSize
) -> EncoderSpec:
    """The spec of a timm trunk by itself."""
    trunk = tower.trunk
    if tower.is_transformer:
        patch = ImageSize(*trunk.patch_embed.feat_ratio(as_scalar=False))
        movable = getattr(trunk, "dynamic_img_size", False)
        pooling = "attention" if tower.pools_by_attention else _POOLING.get(trunk.global_pool, "mean")
        layer_sizes: tuple[int, ...] = ()
        offset, multiple = 0, patch
    else:
        stride = max(int(stage["reduction"]) for stage in trunk.feature_info)
        patch = ImageSize(stride, stride)
        step = trunk.patch_embed.patch_size[0] if hasattr(trunk, "patch_embed") else 1  # Swin's
        movable, offset = _try_sizes(tower, stride, step)
        pooling = "mean"
        layer_sizes = tuple(int(trunk.feature_info[k]["num_chs"]) for k in tower.stages)
        multiple = ImageSize(step, step)
    hidden = int(trunk.num_features)
    return EncoderSpec(
        id=encoder_id,
        family=_family(trunk),
        image_size=image_size,
        patch_size=patch,
        prefix_tokens=tower.prefix_tokens,
        hidden_size=hidden,
        embed_dim=None,
        pooled_size=int(getattr(trunk, "head_hidden_size", hidden)),
        pooling=pooling,
        layers=len(tower.stages),
        layer_sizes=layer_sizes,
        grid_offset=offset,
        resolutions=Resolutions(
            multiple=multiple, minimum=patch, maximum=largest_size(patch), only=None if movable else image_size
        ),
        preprocessing=preprocessing,
    )


_POOLING = {"token": "class", "avg": "mean", "map": "attention", "max": "max"}


def _family(trunk: nn.Module) -> str:
    """The architecture's kind from timm's module: vision_transformer -> vit, convnext -> convnext."""
    module = type(trunk).__module__.rpartition(".")[2]
    return {"vision_transformer": "vit", "byobnet": "resnet"}.get(module, module)


def _try_sizes(tower: TimmTower, stride: int, step: int) -> tuple[bool, int]:
    """Whether a feature-map trunk runs at sizes other than its own, and its grid_offset.

    Convolutions give floor((side + offset) / stride) for one offset (floors of floors compose), so the smallest side,
    in steps of `step` pixels, whose grid is 3 tells it.
    """

    def cols(side: int) -> int:
        with torch.inference_mode():
            final = tower.trunk.forward_features(torch.zeros(1, 3, 3 * stride, side))
            return tower.grid_of(final, final).cols

    training = tower.training
    tower.eval()
    try:
        if cols(3 * stride) != 3:
            return False, 0
        low, high = 2 * stride // step, 3 * stride // step  # the grid is 2 at low and 3 at high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if cols(middle * step) >= 3 else (middle, high)
    except (RuntimeError, AssertionError, ValueError):
        return False, 0
    finally:
        tower.train(training)
    return True, 3 * stride - high * step


def preprocessing_of(trunk: Any) -> Preprocessing:
    """Timm's own evaluation transform as Preprocessing."""
    config = resolve_data_config({}, model=trunk)
    return Preprocessing(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        resize={"center": "shortest", "squash": "squash", "border": "longest"}[config["crop_mode"]],  # type: ignore[arg-type]
        crop_pct=config["crop_pct"],
    )
