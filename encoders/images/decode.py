"""Image bytes -> RGB image. Knows formats and limits; knows no encoder.

Pillow opens lazily, so everything that can fail because of the bytes (header, size, pixels, orientation, mode)
happens here, before the image can share a batch with another one.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from encoders.contract.errors import EmptyImage, ImageTooLarge, NotAnImage, UndecodableImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Formats that are read. A closed list: Pillow also opens formats that start other programs (EPS)."""

MAX_PIXELS = 64 * 1024 * 1024
"""Default limit: 192 MiB of RGB; takes photographs up to 64 megapixels."""

# Pillow's decoders raise these on broken data; all mean that the bytes are bad.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    RuntimeError,  # AVIF's
    struct.error,
    zlib.error,
)


def decode(image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """The first frame as an RGB image, upright as a viewer shows it.

    at_least: JPEGs may be decoded at half, a quarter or an eighth of their size as long as both sides keep so many
        pixels; it saves most of the work on a photograph of many megapixels. None decodes every pixel.

    EXIF orientation is applied; transparency is laid over white; 16-bit values are scaled to 8 bits; CMYK and palettes
    are converted. The number of pixels is read from the header and checked before anything is decoded.

    Raises EmptyImage, NotAnImage, ImageTooLarge, UndecodableImage.
    """
    if not image_bytes:
        raise EmptyImage
    try:
        image: Image.Image = Image.open(io.BytesIO(image_bytes), formats=FORMATS)
    except Image.DecompressionBombError as error:  # over twice Pillow's own limit, so over ours
        raise ImageTooLarge(pixels=_pixels_in(str(error)), limit=max_pixels) from error
    except UnidentifiedImageError as error:
        raise NotAnImage(FORMATS) from error
    except _BROKEN as error:
        raise UndecodableImage("announced", _reason(error)) from error
    image_format = image.format or "unknown"
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageTooLarge(pixels=pixels, limit=max_pixels)
    try:
        image.seek(0)
        if at_least is not None:
            _shrink(image, at_least)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # else a copy, also of what is upright already
        return _rgb(image)
    except _BROKEN as error:
        raise UndecodableImage(image_format, _reason(error)) from error


def _shrink(image: Image.Image, at_least: int) -> None:
    """Have a JPEG decoded at the smallest part of its size that keeps `at_least` pixels a side.

    Both sides must divide by the part: else the last row or column stands for less than the others, and resizing would
    move all of the picture by up to half a pixel.
    """
    for part in (8, 4, 2):
        width, height = image.width // part, image.height // part
        if min(width, height) >= at_least and (width * part, height * part) == image.size:
            image.draft(None, (width, height))
            return


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _grey_from_wide(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _grey_from_wide(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey to 255 on convert; a viewer scales it."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F" and values.max(initial=0.0) <= 1.0:  # the convention of float images: 0..1
        scaled = values * 255
    elif image.mode != "F" and values.max(initial=0.0) > 255:
        scaled = values / 257
    else:
        scaled = values
    return Image.fromarray(np.clip(np.nan_to_num(scaled), 0, 255).round().astype(np.uint8))


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _pixels_in(message: str) -> int:
    """The size out of Pillow's 'Image size (400000000 pixels) exceeds limit ...'."""
    digits = "".join(c for c in message.split("pixels")[0] if c.isdigit())
    return int(digits or 0)
