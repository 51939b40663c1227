"""Decoded samples of any width and kind -> RGB, 8 bits each. Says what is black and what is white."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image, ImageChops, ImageFile

from encoders.contract.errors import UnsupportedImage
from encoders.images.containers import Picture
from encoders.images.preprocess import bands

_MOST_OUTSIDE = 0.01
"""The part of a float image that may lie outside of 0 to 1, or be NaN: it is clipped. More means another range."""


def rgb(image: Image.Image, picture: Picture) -> Image.Image:
    """The loaded image as RGB: transparency over white, wide samples by the range of their bits, float as 0 to 1.

    Raises UnsupportedImage for float samples of another range.
    """
    if picture.transparent is not None:
        return _over_white_by_colour(image, picture)
    if picture.filled is not None:  # Pillow gives the rest the first colour of the palette
        whole = Image.new("RGB", image.size, "white")
        whole.paste(rgb(image.crop(picture.filled), replace(picture, filled=None)), picture.filled)
        return whole
    if image.mode == "F":
        image = _grey_of_float(image)
    elif image.mode.startswith("I"):
        image = _narrowed(image, picture.bits)
    elif image.mode in ("La", "RGBa"):  # alpha was multiplied into the colours
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if picture.white_is_zero:
        image = _inverted(image)
    if image.mode == "RGBA" and picture.format == "BMP" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # screenshots: the fourth byte of a pixel was never set
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    over = Image.new("RGB", image.size)
    for box in bands(image):
        rgba = image.crop(box).convert("RGBA")
        over.paste(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), box)
    return over


def _narrowed(image: Image.Image, bits: int) -> Image.Image:
    """Unsigned integers of so many bits, 0 black and the greatest white; round(255 v / (2^bits - 1))."""
    greatest = 2**bits - 1
    table = ((np.arange(greatest + 1) * 255 + greatest // 2) // greatest).astype(np.uint8)
    grey = Image.new("L", image.size)
    for box in bands(image):
        grey.paste(Image.fromarray(table.take(np.asarray(image.crop(box)), mode="clip")), box)
    return grey


def _grey_of_float(image: Image.Image) -> Image.Image:
    outside, grey = 0, Image.new("L", image.size)
    for box in bands(image):
        values = np.array(image.crop(box))
        outside += values.size - int(np.count_nonzero((values >= 0) & (values <= 1)))  # NaN is neither
        np.nan_to_num(values, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
        np.clip(values, 0, 1, out=values)
        values *= 255
        grey.paste(Image.fromarray(np.rint(values, out=values).astype(np.uint8)), box)
    share = outside / max(1, image.width * image.height)
    if share > _MOST_OUTSIDE:
        raise UnsupportedImage(
            f"an image of floats, {share:.0%} of them outside of 0 to 1, so what is white is not known",
            "Scale them to 0 to 1, 0 being black, or save it as 8 bits",
        )
    return grey


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
    low = _low_bytes(picture) if image.mode == "RGB" and picture.bits == 16 else None
    pixels = rgb(image, replace(picture, transparent=None))
    for box in bands(image):
        values = np.asarray(image.crop(box))
        if low is not None:
            values = values.astype(np.uint16) << 8 | np.asarray(low.crop(box))
        clear = (values == key).all(axis=-1) if image.mode == "RGB" else values == key
        pixels.paste("white", box, Image.fromarray(clear).convert("L"))
    return pixels


def _low_bytes(picture: Picture) -> Image.Image:
    """Of 16-bit colours. Pillow keeps the high bytes; told that the order is the other one, it keeps these."""
    image = Image.open(io.BytesIO(picture.file), formats=("PNG",))
    assert isinstance(image, ImageFile.ImageFile)
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image
