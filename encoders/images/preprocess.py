"""RGB image -> pixels, the way a model was trained to see it. Knows PIL; knows no model library.

Values stay uint8 here: mean and std are applied on the device, so a quarter of the bytes travel.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TypeAlias

import numpy as np
from PIL import Image

from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize, Pixels

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_MAX_OVERSIZE = 16
"""A panorama whose resized form would be over this many times the target is cut to the crop's box first."""


Resize: TypeAlias = Callable[[Image.Image, ImageSize, Image.Resampling], Pixels]
"""An RGB image, its new size and the filter -> its pixels at that size, antialiased."""


def resize_exactly(image: Image.Image, size: ImageSize, resample: Image.Resampling) -> Pixels:
    """With Pillow, as the reference transforms do."""
    return np.array(image.resize((size.width, size.height), resample))


@lru_cache(maxsize=256)
def enough(preprocessing: Preprocessing, size: ImageSize) -> int:
    """Pixels a side that an image may be decoded at, instead of all it has: twice what it is resized to.

    Scaled down by two or more from there it differs from all of it by at most 3 of 255 in a photograph of many
    megapixels (tests/encoders/images/test_resampling.py), and by more at the sharp edges of a smaller one.
    """
    return math.ceil(2 * max(size) / preprocessing.crop_pct)


def preprocess(
    image: Image.Image, preprocessing: Preprocessing, size: ImageSize, *, resize: Resize = resize_exactly
) -> Pixels:
    """Pixels uint8 [height, width, 3], C-contiguous, equal to the pixel to the reference transforms.

    image: mode RGB, any size. size: the target. resize: another one than Pillow's gives its own rounding.
    """
    resample = _FILTERS[preprocessing.interpolation]
    resized_to = partial(_resized, resize=resize)
    if preprocessing.resize == "squash":
        return resized_to(image, size, resample)
    if preprocessing.resize == "longest" or (preprocessing.resize == "pad" and _is_strip(image)):
        ratio = max(image.height / size.height, image.width / size.width)
        resized = ImageSize(max(1, round(image.height / ratio)), max(1, round(image.width / ratio)))
        return _pad(resized_to(image, resized, resample), size, fill=preprocessing.fill)
    if preprocessing.resize == "pad":
        ratio = max(image.height / size.height, image.width / size.width)
        square = ImageSize(max(image.height, round(size.height * ratio)), max(image.width, round(size.width * ratio)))
        padded = Image.fromarray(_pad(np.asarray(image), square, fill=preprocessing.fill))
        return resized_to(padded, size, resample)
    resized = _shortest(image, preprocessing, size)
    top = _offset(resized.height - size.height, preprocessing)
    left = _offset(resized.width - size.width, preprocessing)
    if resized.height * resized.width > _MAX_OVERSIZE * size.height * size.width:
        # The same filter over the crop's box only: within rounding of resizing all of it, at the target's cost.
        scale_y, scale_x = image.height / resized.height, image.width / resized.width
        box = (left * scale_x, top * scale_y, (left + size.width) * scale_x, (top + size.height) * scale_y)
        return np.array(image.resize((size.width, size.height), resample, box=box))
    whole = resized_to(image, resized, resample)
    return np.ascontiguousarray(whole[top : top + size.height, left : left + size.width])


def _is_strip(image: Image.Image) -> bool:
    """Whether padding the image to a square would blow it up: then it is resized first, which costs its sharp edge."""
    return max(image.size) > _MAX_OVERSIZE * min(image.size)


def _shortest(image: Image.Image, preprocessing: Preprocessing, size: ImageSize) -> ImageSize:
    """The size `image` is resized to so that it covers the target; never smaller than it."""
    if size.height == size.width:  # torchvision.transforms.Resize(int): the long side is truncated
        side = math.floor(size.height / preprocessing.crop_pct)
        short, long = sorted((image.height, image.width))
        other = int(side * long / short)
        return ImageSize(side, other) if image.height <= image.width else ImageSize(other, side)
    target = ImageSize(*(math.floor(side / preprocessing.crop_pct) for side in size))
    ratio = min(image.height / target.height, image.width / target.width)  # timm's ResizeKeepRatio
    return ImageSize(max(size.height, round(image.height / ratio)), max(size.width, round(image.width / ratio)))


def _offset(margin: int, preprocessing: Preprocessing) -> int:
    return round(margin / 2) if preprocessing.crop_offset == "round" else margin // 2


def _resized(image: Image.Image, size: ImageSize, resample: Image.Resampling, *, resize: Resize) -> Pixels:
    return np.array(image) if image.size == (size.width, size.height) else resize(image, size, resample)


def _pad(pixels: Pixels, size: ImageSize, *, fill: int | tuple[int, int, int]) -> Pixels:
    height, width, _ = pixels.shape
    if (height, width) == size:
        return pixels
    padded = np.full((*size, 3), fill, dtype=np.uint8)
    top, left = (size.height - height) // 2, (size.width - width) // 2
    padded[top : top + height, left : left + width] = pixels
    return padded
