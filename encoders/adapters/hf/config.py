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
        "prefix_tokens": int(has_class_token) + registers(config),
    }


def registers(config: Any) -> int:
    """The register tokens of an architecture that has some; others may have the setting from nowhere, and ignore it."""
    return int(config.num_register_tokens) if hasattr(type(config), "num_register_tokens") else 0


def pair(size: Any) -> ImageSize:
    """A side or (height, width) as an ImageSize. Raises ValueError for a side that is none."""
    found = ImageSize(size, size) if isinstance(size, int) else ImageSize(*size)
    if min(found) < 1:
        raise ValueError(f"an image or a patch of {found.height}x{found.width} pixels is none")
    return found


def positive(value: Any, name: str) -> int:
    """A setting that must be a whole number over 0. Raises ValueError that names it."""
    if int(value) < 1:
        raise ValueError(f"its {name} is {value}, and must be 1 or more")
    return int(value)
