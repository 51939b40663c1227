"""The spec of a timm trunk: its measured geometry, and the preprocessing that timm declares."""

from typing import Any

from timm.data import resolve_data_config
from torch import nn

from encoders.adapters.timm.tower import TimmTower
from encoders.contract.spec import EncoderSpec, Preprocessing
from encoders.contract.values import ImageSize


def native_size(trunk: Any) -> ImageSize:
    """The size a trunk was made for."""
    embed = getattr(trunk, "patch_embed", None)
    found = getattr(embed, "img_size", None) or trunk.pretrained_cfg["input_size"][1:]
    return ImageSize(*found)


def trunk_spec(
    tower: TimmTower, *, encoder_id: str, preprocessing: Preprocessing, image_size: ImageSize
) -> EncoderSpec:
    """The spec of a timm trunk by itself."""
    geometry = tower.geometry
    return EncoderSpec(
        id=encoder_id,
        family=_family(tower.trunk),
        image_size=image_size,
        patch_size=geometry.patch,
        prefix_tokens=geometry.prefix_tokens,
        hidden_size=geometry.hidden_size,
        embed_dim=None,
        pooled_size=geometry.pooled_size or geometry.hidden_size,
        pooling="attention" if tower.pools_by_attention else _pooling(tower.trunk),
        layers=len(geometry.layers),
        layer_sizes=geometry.layer_sizes,
        grid_offset=geometry.offset,
        resolutions=geometry.resolutions,
        preprocessing=preprocessing,
    )


def _pooling(trunk: Any) -> str:
    """How timm pools: by the class token, by attention, by the greatest value; by the mean in all other cases."""
    pool = getattr(trunk, "global_pool", None)
    return {"token": "class", "map": "attention", "max": "max"}.get(str(getattr(pool, "pool_type", pool)), "mean")


def _family(trunk: nn.Module) -> str:
    """The architecture's kind from timm's module: vision_transformer -> vit, convnext -> convnext."""
    module = type(trunk).__module__.rpartition(".")[2]
    return {"vision_transformer": "vit", "byobnet": "resnet"}.get(module, module)


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
