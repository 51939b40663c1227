"""RGB image -> pixels, the way a model was trained to see it. Knows PIL; knows no model library.

Values stay uint8 here: mean and std are applied on the device, so a quarter of the bytes travel.
"""

import math
from collections.abc import Callable, Iterator
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

BAND_PIXELS = 128 * 1024
"""Of large images so many are worked on at once. Of that size the work stays in a core's cache."""
_MAX_OVERSIZE = 16
_MAX_OVERSIZE_PIXELS = 4 * 1024**2
"""A panorama whose resized form would be over this many times the target, and over this many pixels, is cut to the
crop's box first."""

_MAX_PADDED = 2
_MAX_PADDED_PIXELS = 16 * 1024**2
"""An image that padding makes over this many times larger, and larger than this many pixels, is resized first."""

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
    if preprocessing.resize == "squash" and preprocessing.crop_pct == 1:
        return resized_to(image, size, resample)
    if preprocessing.resize == "pad" and (square := padded_size(ImageSize(image.height, image.width), size)):
        return resized_to(_padded(image, square, fill=preprocessing.fill), size, resample)
    if preprocessing.resize in ("pad", "longest"):
        ratio = max(image.height / size.height, image.width / size.width)
        resized = ImageSize(max(1, round(image.height / ratio)), max(1, round(image.width / ratio)))
        return _pad(resized_to(image, resized, resample), size, fill=preprocessing.fill)
    resized = _before_crop(image, preprocessing, size)
    top = _offset(resized.height - size.height, preprocessing)
    left = _offset(resized.width - size.width, preprocessing)
    limit = max(_MAX_OVERSIZE * size.height * size.width, _MAX_OVERSIZE_PIXELS)
    if resized.height * resized.width > limit:
        # The same filter over the crop's box only: within rounding of resizing all of it, at the target's cost.
        seen = ImageSize(min(size.height, resized.height), min(size.width, resized.width))
        scale_y, scale_x = image.height / resized.height, image.width / resized.width
        y, x = max(top, 0), max(left, 0)
        bottom, right = min(image.height, (y + seen.height) * scale_y), min(image.width, (x + seen.width) * scale_x)
        box = (x * scale_x, y * scale_y, right, bottom)
        pixels = np.array(image.resize((seen.width, seen.height), resample, box=box))
        return pixels if seen == size else _bordered(pixels, size, top, left, fill=preprocessing.fill)
    whole = resized_to(image, resized, resample)
    if min(top, left) < 0:
        whole = _bordered(whole, size, top, left, fill=preprocessing.fill)
        top, left = max(top, 0), max(left, 0)
    return np.ascontiguousarray(whole[top : top + size.height, left : left + size.width])


def padded_size(image: ImageSize, target: ImageSize) -> ImageSize | None:
    """The size that `pad` pads the image to, of the target's proportions.

    None if that would blow it up: then it is resized first, which costs its sharp edge.
    """
    ratio = max(image.height / target.height, image.width / target.width)
    padded = ImageSize(max(image.height, round(target.height * ratio)), max(image.width, round(target.width * ratio)))
    is_strip = max(image) > _MAX_OVERSIZE * min(image)
    pixels = padded.height * padded.width
    if is_strip or pixels > max(_MAX_PADDED * image.height * image.width, _MAX_PADDED_PIXELS):
        return None
    return padded


def _before_crop(image: Image.Image, preprocessing: Preprocessing, size: ImageSize) -> ImageSize:
    """The size that `image` is resized to before the target is cropped from its centre."""
    target = ImageSize(*(math.floor(side / preprocessing.crop_pct) for side in size))
    if preprocessing.resize == "squash":
        return target
    if preprocessing.resize == "edge" or size.height == size.width:
        side = min(target)  # torchvision.transforms.Resize(int): the long side is truncated
        short, long = sorted((image.height, image.width))
        other = int(side * long / short)
        return ImageSize(side, other) if image.height <= image.width else ImageSize(other, side)
    ratio = min(image.height / target.height, image.width / target.width)  # timm's ResizeKeepRatio
    return ImageSize(max(size.height, round(image.height / ratio)), max(size.width, round(image.width / ratio)))


def _offset(margin: int, preprocessing: Preprocessing) -> int:
    """Where a centre crop begins; negative where the image is smaller than the crop."""
    if preprocessing.crop_offset == "floor":
        return margin // 2
    return round(margin / 2) if margin >= 0 else -(-margin // 2)


def _bordered(pixels: Pixels, size: ImageSize, top: int, left: int, *, fill: int | tuple[int, int, int]) -> Pixels:
    """Pixels of at least `size`, with `fill` around them where they are smaller; -top and -left of it lie before."""
    height, width, _ = pixels.shape
    bordered = np.full((max(height, size.height), max(width, size.width), 3), fill, dtype=np.uint8)
    top, left = max(-top, 0), max(-left, 0)
    bordered[top : top + height, left : left + width] = pixels
    return bordered


def _resized(image: Image.Image, size: ImageSize, resample: Image.Resampling, *, resize: Resize) -> Pixels:
    return array_of(image) if image.size == (size.width, size.height) else resize(image, size, resample)


def array_of(image: Image.Image) -> Pixels:
    """The RGB image's pixels in an array of their own. Of a large one by bands, or it would be there twice more."""
    if image.width * image.height <= BAND_PIXELS:
        return np.array(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for box in bands(image):
        pixels[box[1] : box[3]] = np.asarray(image.crop(box))
    return pixels


def bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows that cover the image, each of about BAND_PIXELS.

    Work by bands takes little more memory than its result, and holds the interpreter's lock for little.
    """
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _padded(image: Image.Image, size: ImageSize, *, fill: int | tuple[int, int, int]) -> Image.Image:
    """The image in the middle of one of `size`."""
    if (size.width, size.height) == image.size:
        return image
    colour = fill if isinstance(fill, tuple) else (fill, fill, fill)
    padded = Image.new("RGB", (size.width, size.height), colour)
    padded.paste(image, ((size.width - image.width) // 2, (size.height - image.height) // 2))
    return padded


def _pad(pixels: Pixels, size: ImageSize, *, fill: int | tuple[int, int, int]) -> Pixels:
    height, width, _ = pixels.shape
    if (height, width) == size:
        return pixels
    padded = np.full((*size, 3), fill, dtype=np.uint8)
    top, left = (size.height - height) // 2, (size.width - width) // 2
    padded[top : top + height, left : left + width] = pixels
    return padded
