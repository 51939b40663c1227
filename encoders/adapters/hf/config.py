"""The configuration of a vision transformer, read for its tower."""

from typing import Any

from encoders.contract.values import ImageSize


def vit_facts(config: Any) -> dict[str, Any]:
    """The arguments of a VitTower. A NaFlex configuration has a number of patches and no image size."""
    patch = pair(config.patch_size)
    if config.model_type == "siglip2_vision_model":
        side = int(config.num_patches**0.5)
        native = ImageSize(side * patch.height, side * patch.width)
    else:
        native = pair(config.image_size)
    has_class_token = not config.model_type.startswith("siglip")
    return {
        "native": native,
        "patch_size": patch,
        "prefix_tokens": int(has_class_token) + getattr(config, "num_register_tokens", 0),
    }


def pair(size: Any) -> ImageSize:
    """A side or (height, width) as an ImageSize."""
    return ImageSize(size, size) if isinstance(size, int) else ImageSize(*size)
