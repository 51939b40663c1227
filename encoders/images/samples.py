"""Decoded samples of any width and kind -> RGB, 8 bits each. Says what is black and what is white."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile

from encoders.contract.errors import UnsupportedImage
from encoders.images.containers import Picture

_MOST_OUTSIDE = 0.01
"""The part of a float image that may lie outside of 0 to 1, or be NaN: it is clipped. More means another range."""


def rgb(image: Image.Image, picture: Picture) -> Image.Image:
    """The loaded image as RGB: transparency over white, wide samples by the range of their bits, float as 0 to 1.

    Raises UnsupportedImage for float samples of another range.
    """
    if picture.transparent is not None:
        return _over_white_by_colour(image, picture)
    if image.mode == "F":
        image = _grey_of_float(image)
    elif image.mode.startswith("I"):
        image = Image.fromarray(_narrowed(np.asarray(image), picture.bits))
    elif image.mode in ("La", "RGBa"):  # alpha was multiplied into the colours
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if picture.white_is_zero:
        image = _inverted(image)
    if image.mode == "RGBA" and picture.format == "BMP" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # screenshots: the fourth byte of a pixel was never set
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _narrowed(values: NDArray[np.integer[Any]], bits: int) -> NDArray[np.uint8]:
    """Unsigned integers of so many bits, 0 black and the greatest white; round(255 v / (2^bits - 1))."""
    greatest = 2**bits - 1
    table = ((np.arange(greatest + 1) * 255 + greatest // 2) // greatest).astype(np.uint8)
    narrowed: NDArray[np.uint8] = table.take(values, mode="clip")
    return narrowed


def _grey_of_float(image: Image.Image) -> Image.Image:
    values = np.array(image)
    outside = values.size - np.count_nonzero((values >= 0) & (values <= 1))  # NaN is neither
    if outside > _MOST_OUTSIDE * values.size:
        raise UnsupportedImage(
            f"an image of floats, {outside / values.size:.0%} of them outside of 0 to 1, so what is white is not known",
            "Scale them to 0 to 1, 0 being black, or save it as 8 bits",
        )
    np.nan_to_num(values, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
    np.clip(values, 0, 1, out=values)
    values *= 255
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def _inverted(image: Image.Image) -> Image.Image:
    if image.mode == "LA":
        grey, alpha = image.split()
        return Image.merge("LA", (ImageChops.invert(grey), alpha))
    return ImageChops.invert(image.convert("L"))


def _over_white_by_colour(image: Image.Image, picture: Picture) -> Image.Image:
    """PNG's colour key: the pixels whose samples are all equal to it are white."""
    key = np.array(picture.transparent)
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == "L" and picture.bits < 8:  # Pillow has spread them to 0..255
        key = key * (255 // (2**picture.bits - 1))
    values = np.asarray(image)
    if image.mode == "RGB":
        if picture.bits == 16:
            values = values.astype(np.uint16) << 8 | _low_bytes(picture)
        clear = (values == key).all(axis=-1)
    else:
        clear = values == key
    pixels = np.array(rgb(image, replace(picture, transparent=None)))
    pixels[clear] = 255
    return Image.fromarray(pixels)


def _low_bytes(picture: Picture) -> NDArray[np.uint8]:
    """Of 16-bit colours. Pillow keeps the high bytes; told that the order is the other one, it keeps these."""
    image = Image.open(io.BytesIO(picture.file), formats=("PNG",))
    assert isinstance(image, ImageFile.ImageFile)
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return np.asarray(image)
