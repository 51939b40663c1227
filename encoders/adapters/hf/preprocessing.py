"""A transformers image processor's settings as our Preprocessing. Reads settings only; its code is never run on images.

Taken over: shortest edge and centre crop (CLIP, BiT for DINOv2), squash (SigLIP, ViT, DINOv3), ConvNeXt's crop_pct rule
(below 384 pixels crop, from there squash), LLaVA's padding to a square, the base view alone of LLaVA-NeXT and
LLaVA-OneVision (their tiles are the caller's: send them as images), and SigLIP 2 NaFlex at its largest square.
The share of the image that a crop keeps is that of the native size at every other resolution.
"""

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

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


def seen_by(processor: Any, *, configured: bool) -> Seen:
    """The settings of an image processor; all guessing at attributes is here.

    Raises ValueError for a setting that has no counterpart.
    """
    size, crop = getattr(processor, "size", None) or {}, getattr(processor, "crop_size", None) or {}
    crops = bool(getattr(processor, "do_center_crop", False))
    edge = _entry(size, "shortest_edge")
    share: float | None = None  # of the resized shortest edge that the crop keeps; None: no crop
    fill: tuple[int, int, int] | None = None
    mean, std = _scaled(processor)
    if getattr(processor, "max_num_patches", None):  # NaFlex
        target = _square(math.isqrt(processor.max_num_patches) * processor.patch_size)
    elif getattr(processor, "image_grid_pinpoints", None):  # any-resolution tiles: the base view is squashed
        target = _square(edge) if edge else ImageSize(size["height"], size["width"])
    elif getattr(processor, "crop_pct", None) and edge:  # ConvNeXt
        target = _square(edge)
        share = float(processor.crop_pct) if edge < _CONVNEXT_SQUASHES_FROM else None
    elif edge:
        target = ImageSize(crop["height"], crop["width"]) if crops else _square(edge)
        share = _share(min(target), edge)
        if getattr(processor, "do_pad", False):
            fill, share = tuple(int(value * 255) for value in mean), None  # type: ignore[assignment]  # three channels
    elif size:
        target = ImageSize(size["height"], size["width"])
        if crops and crop["height"] != target.height:
            target, share = ImageSize(crop["height"], crop["width"]), _share(crop["height"], target.height)
    else:
        raise ValueError(f"{type(processor).__name__} says no size")
    if fill is not None:
        return Seen(
            Preprocessing(mean, std, _filter(processor), resize="pad", fill=fill), target, configured=configured
        )
    return Seen(
        Preprocessing(
            mean,
            std,
            _filter(processor),
            resize="squash" if share is None else "shortest",
            crop_pct=share or 1.0,
            crop_offset="floor",
        ),
        target,
        configured=configured,
    )


def _entry(size: Any, key: str) -> int | None:
    """An entry of a SizeDict, whose absent entries are None or not there."""
    return size[key] if key in size else None  # noqa: SIM401 (SizeDict.get has another meaning in older versions)


def _square(side: int) -> ImageSize:
    return ImageSize(side, side)


def _share(crop: int, edge: int) -> float:
    """The share crop / edge, such that preprocess.py's floor(crop / share) gives the edge again."""
    share = min(crop / edge, 1.0)
    while share < 1 and math.floor(crop / share) < edge:
        share = math.nextafter(share, 0.0)
    return share


def _scaled(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std for values in 0..1, whatever the processor scales to before it normalises."""
    scale = 255 * float(processor.rescale_factor if getattr(processor, "do_rescale", True) else 1)
    if not getattr(processor, "do_normalize", True):
        return (0.0, 0.0, 0.0), (1 / scale, 1 / scale, 1 / scale)
    mean, std = ([float(value) / scale for value in values] for values in (processor.image_mean, processor.image_std))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _filter(processor: Any) -> Any:
    """PIL's filter as Preprocessing names it."""
    name = Image.Resampling(int(processor.resample)).name.lower()
    if name not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise ValueError(f"{type(processor).__name__} resizes with the filter {name}, which is not offered")
    return name
