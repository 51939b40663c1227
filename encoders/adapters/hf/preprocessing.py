"""A transformers image processor's settings as our Preprocessing. Reads settings only; its code is never run on images.

A class without code of its own follows transformers' common rules: resize (shortest edge, or both sides), centre crop,
rescale, normalise. _READERS has the classes with their own rules that are read here. Every other class is refused by
its name, and so is a setting that has no counterpart.

Of models that cut an image into tiles the view of the whole image is read. Those of LLaVA-NeXT and OneVision are cut by
encoders/runtime/tiles.py; those of others (InternVL, ...) are the caller's, sent as images. Of models that take any
proportions (NaFlex, Qwen-VL, Pixtral, Depth Anything) the native size is their largest square, and an image is squashed
to the size asked for.

The share of the image that a crop keeps is that of the native size at every other resolution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend

from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize

_CONVNEXT_SQUASHES_FROM = 384
"""ConvNextImageProcessor.resize: "if shortest_edge < 384: ... resize and crop, else warping (no cropping)"."""


@dataclass(frozen=True)
class Seen:
    """How a checkpoint sees an image.

    size: what the processor makes of an image. configured: whether the checkpoint says so, not the class's defaults.
    """

    preprocessing: Preprocessing
    size: ImageSize
    configured: bool


@dataclass(frozen=True)
class _Shape:
    """What becomes of an image's height and width. The fields are those of Preprocessing."""

    target: ImageSize
    resize: Any = "squash"
    crop_pct: float = 1.0
    fill: int | tuple[int, int, int] = 0


def seen_by(processor: Any, *, configured: bool) -> Seen:
    """The settings of an image processor; all guessing at attributes is here.

    Raises ValueError that names the class and the setting, for one that has no counterpart.
    """
    name = _class_name(processor)
    if not getattr(processor, "do_resize", True):
        raise ValueError(f"{name} with do_resize: false gives images of many sizes, which is not offered")
    if name in _READERS:
        shape = _READERS[name](processor)
    elif _has_own_rules(processor):
        raise ValueError(f"the image processor {name} has rules of its own, which are not read")
    else:
        shape = _common(processor)
    mean, std = _scaled(processor)
    preprocessing = Preprocessing(mean, std, _filter(processor), crop_offset="floor")
    return Seen(
        replace(preprocessing, resize=shape.resize, crop_pct=shape.crop_pct, fill=shape.fill),
        shape.target,
        configured=configured,
    )


def _class_name(processor: Any) -> str:
    """The class without its backend: transformers has CLIPImageProcessor, ...Fast and ...Pil with the same settings."""
    return type(processor).__name__.removesuffix("Pil").removesuffix("Fast")


def _has_own_rules(processor: Any) -> bool:
    """Whether the class does more than transformers' backends do."""
    steps = ("_preprocess", "resize", "center_crop", "pad", "rescale", "normalize")
    backend = PilBackend if isinstance(processor, PilBackend) else TorchvisionBackend
    return any(getattr(type(processor), step, None) is not getattr(backend, step) for step in steps)


def _common(processor: Any) -> _Shape:
    """The rules of transformers' backends."""
    name, size, crop = _class_name(processor), _sizes(processor, "size"), _crop(processor)
    edge = size.get("shortest_edge")
    _refuse_padding(processor)
    if edge and "longest_edge" in size:
        raise ValueError(f"{name} has a size with shortest_edge and longest_edge, which is not offered")
    if edge:
        if crop is None:
            raise ValueError(
                f"{name} resizes the shortest edge and with do_center_crop: false gives images of many sizes, "
                "which is not offered"
            )
        return _cropped_from_edge(crop, edge)
    target = _both(size, name)
    return _Shape(target) if crop in (None, target) else _cropped_from_both(crop, target, name)


def _refuse_padding(processor: Any) -> None:
    if getattr(processor, "do_pad", False) and _sizes(processor, "pad_size"):
        raise ValueError(f"{_class_name(processor)} pads to a pad_size, which is not offered")


def _cropped_from_edge(crop: ImageSize, edge: int) -> _Shape:
    square = crop.height == crop.width
    return _Shape(crop, "shortest" if square else "edge", _share(min(crop), edge))


def _cropped_from_both(crop: ImageSize, resized: ImageSize, name: str) -> _Shape:
    share = _share(crop.height, resized.height)
    if math.floor(crop.width / share) != resized.width:
        raise ValueError(
            f"{name} crops {crop.height}x{crop.width} of {resized.height}x{resized.width}: "
            "a crop of other proportions than its size is not offered"
        )
    return _Shape(crop, "squash", share)


def _squashed(processor: Any) -> _Shape:
    """All of the image at `size`: a class whose tiles are left to the caller, or whose proportions are."""
    size = _sizes(processor, "size")
    edge = size.get("shortest_edge") or size.get("longest_edge")
    return _Shape(ImageSize(edge, edge) if edge else _both(size, _class_name(processor)))


def _base_view(processor: Any) -> _Shape:
    """LlavaNext's and LlavaOnevision's view of the whole image is squashed, then cropped as their tiles are."""
    shape, crop = _squashed(processor), _crop(processor)
    return shape if crop in (None, shape.target) else _cropped_from_both(crop, shape.target, _class_name(processor))


def _uncropped(processor: Any) -> _Shape:
    """A class that squashes to `size`, and crops nothing whatever do_center_crop says."""
    return _Shape(_both(_sizes(processor, "size"), _class_name(processor)))


def _convnext(processor: Any) -> _Shape:
    edge = _sizes(processor, "size").get("shortest_edge")
    if not edge:
        raise ValueError(f"{_class_name(processor)} needs a size with shortest_edge")
    if getattr(processor, "do_center_crop", False):
        raise ValueError(f"{_class_name(processor)} with do_center_crop crops twice, which is not offered")
    target = ImageSize(edge, edge)
    if edge >= _CONVNEXT_SQUASHES_FROM:
        return _Shape(target)
    return _Shape(target, "shortest", float(processor.crop_pct))


def _levit(processor: Any) -> _Shape:
    """LevitImageProcessor.resize: the shortest edge becomes 256 / 224 of the one in `size`."""
    edge, crop = _sizes(processor, "size").get("shortest_edge"), _crop(processor)
    if edge and crop:
        _refuse_padding(processor)
        return _cropped_from_edge(crop, int((256 / 224) * edge))
    return _common(processor)


def _llava(processor: Any) -> _Shape:
    """LlavaImageProcessor: with do_pad the image is first padded to a square of the mean's colour."""
    shape = _common(processor)
    if not getattr(processor, "do_pad", False):
        return shape
    if _crop(processor) and shape.crop_pct != 1:
        raise ValueError("LlavaImageProcessor with do_pad and a crop_size other than its size is not offered")
    red, green, blue = (int(value * 255) for value in _channels(processor.image_mean))
    return replace(shape, resize="pad", fill=(red, green, blue))


def _dpt(processor: Any) -> _Shape:
    """DPTImageProcessor: both sides rounded to a multiple. Its keep_aspect_ratio is the caller's: another size."""
    if getattr(processor, "do_pad", False) and getattr(processor, "size_divisor", None):
        raise ValueError("DPTImageProcessor with do_pad and a size_divisor is not offered")
    multiple = getattr(processor, "ensure_multiple_of", None) or 1
    size = _both(_sizes(processor, "size"), "DPTImageProcessor")
    return _Shape(ImageSize(*(round(side / multiple) * multiple for side in size)))


def _naflex(processor: Any) -> _Shape:
    side = math.isqrt(processor.max_num_patches) * processor.patch_size
    return _Shape(ImageSize(side, side))


def _pixels(processor: Any) -> _Shape:
    """Qwen-VL's smart_resize: any size of whole merged patches up to a number of pixels, the `longest_edge`."""
    limit = _sizes(processor, "size").get("longest_edge") or processor.max_pixels
    unit = processor.patch_size * processor.merge_size
    side = max(unit, math.isqrt(limit) // unit * unit)
    return _Shape(ImageSize(side, side))


def _global_view(processor: Any) -> _Shape:
    """Idefics3's and SmolVLM's view of the whole image.

    They first bring the image to the longest edge of `size`, so their pixels are resized twice and ours once.
    """
    side = _sizes(processor, "max_image_size")["longest_edge"]
    return _Shape(ImageSize(side, side))


def _tile(processor: Any) -> _Shape:
    return _Shape(ImageSize(processor.tile_size, processor.tile_size))


_READERS: dict[str, Callable[[Any], _Shape]] = {
    "BeitImageProcessor": _common,
    "Cohere2VisionImageProcessor": _squashed,
    "ConvNextImageProcessor": _convnext,
    "DINOv3ViTImageProcessor": _common,
    "DPTImageProcessor": _dpt,
    "EfficientNetImageProcessor": _common,
    "Gemma3ImageProcessor": _uncropped,
    "Glm4vImageProcessor": _pixels,
    "GotOcr2ImageProcessor": _uncropped,
    "Idefics3ImageProcessor": _global_view,
    "LevitImageProcessor": _levit,
    "LlavaImageProcessor": _llava,
    "LlavaNextImageProcessor": _base_view,
    "LlavaOnevisionImageProcessor": _base_view,
    "MllamaImageProcessor": _squashed,
    "MobileNetV2ImageProcessor": _common,
    "PerceptionLMImageProcessor": _tile,
    "PixtralImageProcessor": _squashed,
    "Qwen2VLImageProcessor": _pixels,
    "SegformerImageProcessor": _uncropped,
    "Siglip2ImageProcessor": _naflex,
    "SmolVLMImageProcessor": _global_view,
}


def _sizes(processor: Any, name: str) -> dict[str, int]:
    """A SizeDict's entries, without the absent ones."""
    found = getattr(processor, name, None) or {}
    entries = ((key, found[key]) for key in ("height", "width", "shortest_edge", "longest_edge") if key in found)
    return {key: int(side) for key, side in entries if side}


def _both(size: dict[str, int], name: str) -> ImageSize:
    if "height" not in size or "width" not in size:
        raise ValueError(f"{name} has a size of {', '.join(size) or 'nothing'}, not of height and width")
    return ImageSize(size["height"], size["width"])


def _crop(processor: Any) -> ImageSize | None:
    if not getattr(processor, "do_center_crop", False):
        return None
    return _both(_sizes(processor, "crop_size"), f"the crop of {_class_name(processor)}")


def _share(crop: int, edge: int) -> float:
    """The share crop / edge, such that preprocess.py's floor(crop / share) gives the edge again."""
    share = crop / edge
    while math.floor(crop / share) < edge:
        share = math.nextafter(share, 0.0)
    return share


def _channels(value: Any) -> tuple[float, float, float]:
    """Three numbers, of a list or of one number for all."""
    values = [float(each) for each in value] if hasattr(value, "__len__") else [float(value)] * 3
    if len(values) != 3:
        raise ValueError(f"an image_mean or image_std of {len(values)} channels is not of an RGB image")
    return values[0], values[1], values[2]


def _scaled(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std for values in 0..1, whatever the processor scales to before it normalises."""
    rescales, normalizes = getattr(processor, "do_rescale", True), getattr(processor, "do_normalize", True)
    scale = 255 * float(processor.rescale_factor if rescales else 1)
    is_efficientnets = _class_name(processor) == "EfficientNetImageProcessor"  # no other class has these two rules
    offset = 1.0 if is_efficientnets and rescales and processor.rescale_offset else 0.0  # to -1..1
    mean = _channels(processor.image_mean) if normalizes else (0.0, 0.0, 0.0)
    std = _channels(processor.image_std) if normalizes else (1.0, 1.0, 1.0)
    if is_efficientnets and processor.include_top:  # divided once more
        std = _channels([a * b for a, b in zip(std, _channels(processor.image_std), strict=True)])
    if not all(std) or not scale:
        raise ValueError(f"{_class_name(processor)} divides by an image_std or a rescale_factor of 0")
    return _channels([(value + offset) / scale for value in mean]), _channels([value / scale for value in std])


def _filter(processor: Any) -> Any:
    """PIL's filter as Preprocessing names it; transformers' own where the processor names none: bilinear."""
    resample = getattr(processor, "resample", None)
    name = "bilinear" if resample is None else Image.Resampling(int(resample)).name.lower()
    if name not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise ValueError(f"{_class_name(processor)} resizes with the filter {name}, which is not offered")
    return name
